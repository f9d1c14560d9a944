# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What systemd says of the units that matter here."""

from __future__ import annotations

import glob
import json
import os
import re

from ...host import files
from ...host.runner import MissingCommand, Runner
from ..checks.services import FORWARDER, KEEPER, NETWORKD
from .model import Contest, Unit
from .unread import listed

FOREIGN_RULES_STAY = re.compile(r"^\s*ManageForeignRoutingPolicyRules\s*=\s*(no|false|off|0)\s*$", re.MULTILINE)


def units(run: Runner, systemd: str) -> dict[str, Unit] | None:
    """The units by name; None where systemd is not the init (sd_booted(3)). CommandFailed."""
    if not os.path.isdir(systemd):
        return None
    properties = "--property=Id,LoadState,ActiveState,UnitFileState"
    try:
        return parse(listed(run, ["systemctl", "show", properties, KEEPER, FORWARDER, NETWORKD]))
    except MissingCommand:
        return None


def parse(shown: str) -> dict[str, Unit]:
    """``systemctl show``: one block of NAME=VALUE a unit, an empty line between two."""
    found = {}
    for block in shown.strip().split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" in values:
            found[values["Id"]] = Unit(
                values.get("LoadState", ""), values.get("ActiveState", ""), values.get("UnitFileState", "")
            )
    return found


def contest(state: str) -> Contest | None:
    """From the keeper's state file (see ``record``); None while what it repairs lasts, or where no keeper runs."""
    try:
        data = json.loads(files.read(state) or "{}")
        if not data.get("undone"):
            return None
        last = data.get("last_repair") or {}
        changes = tuple(str(one) for one in last.get("changes", ()))
        return Contest(int(data["undone"]), last.get("owner", ""), changes, last.get("who", ""))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def drop_ins(directory: str) -> tuple[str, ...]:
    """Files that tell systemd-networkd to leave the rules of others alone (networkd.conf(5))."""
    names = [os.path.join(directory, "networkd.conf")]
    names += sorted(glob.glob(os.path.join(directory, "networkd.conf.d", "*.conf")))
    return tuple(name for name in names if FOREIGN_RULES_STAY.search(files.read(name) or ""))
