# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The state of the systemd units that matter to the path, and how systemd-networkd is configured."""

from __future__ import annotations

import glob
import os
import re

from ...host import files
from ...host.runner import MissingCommand, Runner
from .commands import output_of
from .model import Unit

KEEPER, FORWARDER, NETWORKD = "l4proxy-keeper.service", "l4proxy-forwarder.service", "systemd-networkd.service"
FOREIGN_RULES_STAY = re.compile(r"^\s*ManageForeignRoutingPolicyRules\s*=\s*(no|false|off|0)\s*$", re.MULTILINE)


def units(run: Runner, systemd: str) -> dict[str, Unit] | None:
    """The units by name; None if systemd is not the init (sd_booted(3)). CommandFailed."""
    if not os.path.isdir(systemd):
        return None
    properties = "--property=Id,LoadState,ActiveState,UnitFileState"
    try:
        return parse(output_of(run, ["systemctl", "show", properties, KEEPER, FORWARDER, NETWORKD]))
    except MissingCommand:
        return None


def parse(shown: str) -> dict[str, Unit]:
    """The output of ``systemctl show``: a block of NAME=VALUE lines for each unit, separated by empty lines."""
    by_name = {}
    for block in shown.strip().split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" in values:
            by_name[values["Id"]] = Unit(
                values.get("LoadState", ""), values.get("ActiveState", ""), values.get("UnitFileState", "")
            )
    return by_name


def drop_ins(directory: str) -> tuple[str, ...]:
    """Files that make systemd-networkd leave foreign rules alone (networkd.conf(5))."""
    names = [os.path.join(directory, "networkd.conf")]
    names += sorted(glob.glob(os.path.join(directory, "networkd.conf.d", "*.conf")))
    return tuple(name for name in names if FOREIGN_RULES_STAY.search(files.read(name) or ""))
