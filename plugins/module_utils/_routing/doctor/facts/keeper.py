# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the keeper's state file says about repairs that do not last, and about proxies that do not answer."""

from __future__ import annotations

import json

from ...host import files
from .model import Contest, Silent


def contest(state: str) -> Contest | None:
    """The repair that another tool reverts, from the file that ``keeper.state_file`` writes; None if there is none."""
    try:
        data = json.loads(files.read(state) or "{}")
        if not data.get("undone"):
            return None
        last = data.get("last_repair") or {}
        changes = tuple(str(change) for change in last.get("changes", ()))
        return Contest(int(data["undone"]), last.get("owner", ""), changes, last.get("who", ""))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def silent(state: str) -> tuple[Silent, ...]:
    """The proxies that do not answer, from the same file."""
    try:
        listed = json.loads(files.read(state) or "{}").get("silent", [])
        return tuple(Silent(str(each["proxy"]), str(each["address"]), str(each["since"])) for each in listed)
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return ()
