# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a process runs: the archive that it was imported from, and the notification socket of its service manager."""

from __future__ import annotations

import os
from collections.abc import Mapping


def running_archive() -> str | None:
    """Return the real path of the zip archive that this code was imported from, None if it was a directory."""
    archive = getattr(globals().get("__loader__"), "archive", None)
    return os.path.realpath(archive) if archive else None


def notify_address(environ: Mapping[str, str]) -> str | None:
    """Return the address of systemd's notification socket (sd_notify(3)), None if there is none."""
    address = environ.get("NOTIFY_SOCKET", "")
    return "\0" + address[1:] if address.startswith("@") else address or None
