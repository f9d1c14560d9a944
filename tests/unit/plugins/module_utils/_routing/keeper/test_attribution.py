# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whom the keeper blames, and how surely it says so."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.runner import Completed, MissingCommand
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper import attribution
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.monitor import News

NOW = 1000.0
RULES, MARKS = ("rule",), ("marks",)


def systemd(**started):
    """``systemctl show``, on a host where these services run since then (seconds); others are known and do not."""

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


def without_systemd(argv, stdin=None):
    raise MissingCommand(argv[0])


CASES = [
    ("a process that is known", MARKS, [News("marks", process="firewalld")], systemd(), "firewalld"),
    (
        "a service that was started just before",
        RULES,
        [News("rule")],
        systemd(systemd_networkd=999.0),
        "systemd-networkd, which was started at that time",
    ),
    (
        "a service that was started while it happened",
        RULES,
        [News("rule")],
        systemd(systemd_networkd=1000.4),
        "systemd-networkd, which was started at that time",
    ),
    (
        "services that merely run",
        RULES,
        [News("rule")],
        systemd(systemd_networkd=1.0, keepalived=1.0, docker=1.0),
        "perhaps systemd-networkd or keepalived",
    ),
    (
        "a tool, and a service that uses such",
        MARKS,
        [News("marks", process="iptables-restor")],
        systemd(ufw=1.0),
        "perhaps ufw by way of iptables-restor",
    ),
    ("a tool alone", MARKS, [News("marks", process="nft")], systemd(), "a process named nft"),
    ("a tool of nobody here", MARKS, [News("marks", process="nft")], systemd(ufw=1.0), "a process named nft"),
    ("a service that only starts", MARKS, [News("marks")], systemd(nftables=1.0), ""),
    ("another process", MARKS, [News("marks", process="mine")], systemd(ufw=1.0), "a process named mine"),
    ("a service of other things", MARKS, [News("marks")], systemd(systemd_networkd=999.0), ""),
    ("a link", RULES, [News("rule"), News("link")], systemd(systemd_networkd=1.0), "a link had changed"),
    ("a MAC", MARKS, [News("neighbour")], systemd(firewalld=1.0), "a proxy had another MAC"),
    ("nothing known", RULES, [News("rule")], systemd(), ""),
    ("no systemd", RULES, [News("rule")], without_systemd, ""),
]


@pytest.mark.parametrize(("kinds", "news", "run", "who"), [row[1:] for row in CASES], ids=[row[0] for row in CASES])
def test_who(kinds, news, run, who):
    assert attribution.find(kinds, news, run, False, NOW).who == who


def test_each_suspect_comes_with_what_to_do():
    for suspect in attribution.SUSPECTS:
        name = suspect.unit.replace("-", "_").partition(".")[0]
        verdict = attribution.find(suspect.kinds, [], systemd(**{name: NOW}), False, NOW)
        assert suspect.name in verdict.who
        assert verdict.remedy == suspect.remedy


@pytest.mark.parametrize(("sees", "who"), [(True, "a process named sleep"), (False, "")])
def test_the_port_of_a_sender_is_its_process_unless_in_a_container(sees, who):
    with subprocess.Popen(["sleep", "60"]) as sender:
        while not Path(f"/proc/{sender.pid}/comm").read_text(encoding="utf-8").startswith("sleep"):
            pass  # it has not become what it is to be yet
        news = [News("rule", sender.pid), News("rule", os.getpid()), News("rule", 0)]
        try:
            assert attribution.find(RULES, news, systemd(), sees, NOW).who == who
        finally:
            sender.kill()
