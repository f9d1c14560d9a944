# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The promise of a healthy forwarder that ends: its successor needs a moment to start, and is not unhealthy meanwhile.

It is a file beside the admin socket that says until when it holds, in monotonic seconds. ``_healthy.py`` reads it, too.
"""

from __future__ import annotations

import time

SUFFIX = ".until"  # after the path of the socket
LONGEST = 10.0  # seconds


def holds(path: str) -> bool:
    """Whether a forwarder with the admin socket ``path`` has promised a successor that may still be starting."""
    try:
        with open(path + SUFFIX, encoding="ascii") as stream:
            return 0 < float(stream.read()) - time.monotonic() <= LONGEST
    except (OSError, ValueError):
        return False
