# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a client is not served."""

from __future__ import annotations

from typing import NamedTuple


class Refusal(NamedTuple):
    """Made where the refusal is decided. ``cause`` is one of shared.REFUSED, which metrics have as a label; ``text`` is
    what the log says, and may be worded otherwise at any time."""

    cause: str
    text: str
