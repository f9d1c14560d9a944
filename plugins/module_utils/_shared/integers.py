# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole numbers in documents that others have written. Pure."""

from __future__ import annotations

from typing import Any


def is_whole(value: Any, low: float, high: float) -> bool:
    """Return whether ``value`` is a whole number from ``low`` to ``high``. (In Python, True is an int as well.)"""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
