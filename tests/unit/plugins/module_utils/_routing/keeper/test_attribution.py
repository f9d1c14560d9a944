# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which tool the keeper names as the cause of a change, and how certainly."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.runner import Completed
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper import attribution
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.monitor import Notification

from ..fakes import no_command

NOW = 1000.0
RULES, MARKS = ("rule",), ("marks",)


def systemd(**started):
    """A runner of ``systemctl show``: the named services run, each since that second, and all others do not."""

    def run(argv, stdin=None):
        assert argv[:2] == ["systemctl", "show"]
        blocks = []
        for unit in argv[3:]:
            name = unit.replace("-", "_").partition(".")[0]
            state, at = ("active", int(started[name] * 1e6)) if name in started else ("inactive", 0)
            blocks.append(
                f"Id={unit}\nActiveState={state}\nActiveEnterTimestampMonotonic={at}\n"
                "ExecMainStartTimestampMonotonic=0\nStateChangeTimestampMonotonic=0\n"
            )
        return Completed(0, "\n".join(blocks), "")

    return run


RULE, MARK, LINK, NEIGHBOUR = (Notification(kind) for kind in ("rule", "marks", "link", "neighbour"))


def by(process):
    return Notification("marks", process=process)


STARTED, RUNS = "systemd-networkd, which started at that time", {"systemd_networkd": 1.0, "keepalived": 1.0}
CASES = {
    "a known process": (MARKS, [by("firewalld")], systemd(), "firewalld"),
    "a service started just before": (RULES, [RULE], systemd(systemd_networkd=999.0), STARTED),
    "a service started just after": (RULES, [RULE], systemd(systemd_networkd=1000.4), STARTED),
    "services that only run": (RULES, [RULE], systemd(**RUNS, docker=1.0), "perhaps systemd-networkd or keepalived"),
    "a service's command": (MARKS, [by("iptables-restor")], systemd(ufw=1.0), "perhaps ufw with iptables-restor"),
    "only a command": (MARKS, [by("nft")], systemd(), "a process named nft"),
    "a command that no service uses": (MARKS, [by("nft")], systemd(ufw=1.0), "a process named nft"),
    "a service that only starts": (MARKS, [MARK], systemd(nftables=1.0), ""),
    "another process": (MARKS, [by("mine")], systemd(ufw=1.0), "a process named mine"),
    "a service of other objects": (MARKS, [MARK], systemd(systemd_networkd=999.0), ""),
    "a link": (RULES, [RULE, LINK], systemd(systemd_networkd=1.0), "a link changed"),
    "a MAC": (MARKS, [NEIGHBOUR], systemd(firewalld=1.0), "a proxy's MAC changed"),
    "no evidence": (RULES, [RULE], systemd(), ""),
    "no systemd": (RULES, [RULE], no_command, ""),
}


@pytest.mark.parametrize(("kinds", "notifications", "run", "who"), CASES.values(), ids=CASES)
def test_the_cause_is_the_strongest_evidence(kinds, notifications, run, who):
    assert attribution.find(kinds, notifications, run, False, NOW).who == who


def test_each_suspect_has_its_remedy():
    for suspect in attribution.SUSPECTS:
        name = suspect.unit.replace("-", "_").partition(".")[0]
        cause = attribution.find(suspect.kinds, [], systemd(**{name: NOW}), False, NOW)
        assert suspect.name in cause.who
        assert cause.remedy == suspect.remedy


@pytest.mark.parametrize(("sees", "who"), [(True, "a process named sleep"), (False, "")])
def test_a_netlink_port_is_the_senders_process_unless_in_a_container(sees, who):
    with subprocess.Popen(["sleep", "60"]) as sender:
        while not Path(f"/proc/{sender.pid}/comm").read_text(encoding="utf-8").startswith("sleep"):
            pass  # it has not called exec() yet
        notifications = [Notification("rule", sender.pid), Notification("rule", os.getpid()), Notification("rule", 0)]
        try:
            assert attribution.find(RULES, notifications, systemd(), sees, NOW).who == who
        finally:
            sender.kill()
