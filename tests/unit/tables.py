# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of test cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def rows(table: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """A table for parametrize, whose first column are the ids."""
    return {"argvalues": [row[1:] for row in table], "ids": [row[0] for row in table]}
