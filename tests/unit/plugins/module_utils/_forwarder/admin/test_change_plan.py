# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin.change_plan import Plan, plan, report
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import config

B, C = ({"name": name, "port": 80, "ipv4": f"198.18.0.{number}"} for name, number in (("b", 21), ("c", 22)))
OLD_C = {**C, "ipv4": "198.18.0.99"}
WEB = {"name": "web", "listen": [{"address": "0.0.0.0", "port": 80}], "backends": [B, C]}
SSH = {"name": "ssh", "listen": [{"address": "0.0.0.0", "port": 22}], "backends": [C], "drain_timeout": 600}
ELSEWHERE = {**WEB, "listen": [{"address": "0.0.0.0", "port": 81}]}
IN_KERNEL = {**WEB, "listen": [{"address": "198.18.0.11", "port": 80}], "datapath": "kernel"}
UDP = {**WEB, "protocol": "udp"}
NEW, OLD = "l4proxy-0.2.0-22222222.pyz", "l4proxy-0.1.0-11111111.pyz"


def load(*services, **more):
    return config.load({"schema": 1, "proxy_id": 1, "services": list(services), **more})


def entry(service, **active):
    """A service in the status document; ``active`` are the connections of its backends."""
    return {
        "name": service["name"],
        "protocol": service.get("protocol", "tcp"),
        "listen": [f"0.0.0.0:{service['listen'][0]['port']}"],
        "backends": [
            {
                "name": one["name"],
                "port": one["port"],
                "active": active.get(one["name"], 0),
                "families": {"ipv4": {"address": one["ipv4"], "active": active.get(one["name"], 0)}},
            }
            for one in service["backends"]
        ],
    }


def status(*services, version="0.2.0", **last):
    last = {"ok": True, **({"in_place": False} if version != "0.1.0" else {}), **last}
    running = {"version": version, "archive": {"path": f"/lib/{OLD}"}, "generation": 4, "last_reload": last}
    return {**running, "workers": [{"sessions": 5}, {"sessions": 3}], "services": list(services)}


STATUS = status(entry(WEB, b=5, c=2), entry(SSH, c=1))
FIRST = status(*STATUS["services"], version="0.1.0")
LOADED, STAY = "a new config is loaded; ", "all connections stay"
OTHERS = LOADED + "all other connections stay"
UPGRADE = f"upgrade from {OLD} to {NEW}"
RULE = (
    ": the version that runs ends them after its own drain timeout; to give them longer, set forwarder_drain_timeout "
    "and deploy that version once more before the upgrade"
)
KEPT = "the old processes serve their 8 connections until these end"
SET = "8 connections end in 60 s at the latest (forwarder_drain_timeout)"
UNIT = "a changed unit restarts the forwarder"
TABLE = [
    ("nothing", [WEB, SSH], None, {}, Plan("none", [])),
    ("a new backend", [{**WEB, "backends": [B, C, {**OLD_C, "name": "d"}]}, SSH], None, {},
     Plan("reload", [LOADED + STAY])),
    ("a backend leaves", [{**WEB, "backends": [B]}, SSH], None, {},
     Plan("reload", [OTHERS, "backend c leaves service web: 2 connections end in 30 s at the latest"], 2, 30)),
    ("a backend is disabled", [{**WEB, "backends": [{**B, "enabled": False}, C]}, SSH], None, {},
     Plan("reload", [LOADED + STAY, "backend b of service web gets no new connections (enabled: false)"])),
    ("another address of a backend", [{**WEB, "backends": [B, OLD_C]}, SSH], None, {},
     Plan("reload", [LOADED + STAY], 0, None)),
    ("a service leaves, with a deadline of its own", [WEB], None, {},
     Plan("reload", [OTHERS, "service ssh is removed: 1 connection ends in 600 s at the latest"], 1, 600)),
    ("another protocol", [UDP, SSH], None, {},
     Plan("reload", [OTHERS, "service web is removed: 7 connections end in 30 s at the latest"], 7, 30)),
    ("another listener", [ELSEWHERE, SSH], None, {},
     Plan("reload", [LOADED + STAY, "service web no longer listens on 0.0.0.0:80"])),
    ("another datapath", [IN_KERNEL, SSH], None, {},
     Plan("reload", [LOADED + STAY, "service web no longer listens on 0.0.0.0:80",
                     "the kernel forwards service web; open TCP connections stay with the forwarder"])),
    ("another archive", [WEB, SSH], NEW, {}, Plan("upgrade", [UPGRADE, KEPT])),
    ("another archive, and the operator's timeout", [WEB, SSH], NEW, {"drain_timeout": 60},
     Plan("upgrade", [UPGRADE, SET], 8, 60)),
    ("another archive, and a backend leaves", [{**WEB, "backends": [B]}, SSH], NEW, {},
     Plan("upgrade", [UPGRADE, "the old processes serve all other connections until these end",
                      "backend c leaves service web: 2 connections end in 30 s at the latest"], 2, 30)),
    ("another archive, the operator's timeout, and a backend leaves", [{**WEB, "backends": [B]}, SSH], NEW,
     {"drain_timeout": 60}, Plan("upgrade", [UPGRADE, SET, "backend c leaves service web"], 8, 60)),
]  # fmt: skip


@pytest.mark.parametrize(("services", "archive", "settings", "expected"), [row[1:] for row in TABLE],
                         ids=[row[0] for row in TABLE])  # fmt: skip
def test_the_plan_says_what_changes_and_what_ends(services, archive, settings, expected):
    old, new = load(WEB, SSH, **settings), load(*services, **settings)
    assert plan(STATUS, old, new, archive, restart=False) == expected


def test_a_restart_a_start_and_the_first_upgrade():
    same = load(WEB, SSH)
    assert plan(STATUS, same, same, None, restart=True) == Plan("restart", [UNIT, KEPT])
    assert plan(None, None, same, NEW, restart=True).action == "start"
    ends = f"8 connections end in 30 s at the latest{RULE}"
    assert plan(FIRST, same, same, NEW, restart=False) == Plan("upgrade", [UPGRADE, ends], 8, 30)
    assert plan(FIRST, same, same, NEW, restart=True) == Plan("restart", [UPGRADE, UNIT, ends], 8, 30)
    disabled = entry(WEB)
    disabled["backends"][0]["enabled"] = False
    again = [LOADED + STAY, "backend b of service web gets new connections again"]
    assert plan(status(disabled), None, same, None, restart=False) == Plan("reload", again)
    # What runs is unknown: the last run was interrupted.
    assert plan(STATUS, None, same, None, restart=False) == Plan("reload", [LOADED + STAY])


HASHED = {"balance": "source_hash"}
MOVED = (
    "l4proxy_hash_table changes from ring to maglev: new connections of most clients of {} with source_hash go to "
    "another backend"
)


@pytest.mark.parametrize(("before", "services", "archive", "expected"), [
    ([WEB, {**SSH, **HASHED}], [{**WEB, **HASHED}, {**SSH, **HASHED}], None,
     [LOADED + STAY, MOVED.format("1 service")]),
    ([{**WEB, **HASHED}, {**SSH, **HASHED}], [{**WEB, **HASHED}, {**SSH, **HASHED}], NEW,
     [UPGRADE, KEPT, MOVED.format("2 services")]),
    ([WEB, SSH], [WEB, SSH], None, [LOADED + STAY]),
])  # fmt: skip
def test_the_plan_says_that_another_hash_table_moves_clients(before, services, archive, expected):
    old, new = load(*before), load(*services, hash_table="maglev")
    assert plan(STATUS, old, new, archive, restart=False).sentences == expected
    assert not any("hash_table" in one for one in plan(STATUS, new, new, NEW, restart=False).sentences)


LIVES = {"generation": 3, "version": "0.1.0", "sessions": 20, "seconds_left": None}
REPORTS = [
    ({"in_place": True}, "the config was taken in place: no process was replaced"),
    ({"in_place": False}, "new processes serve the config: generation 4 (0.2.0)"),
    ({"new_processes_because": "another archive is installed"},
     "new processes serve the config, because another archive is installed"),
    ({"ok": False, "error": "port taken"},
     "the last reload failed, and the config before it still serves: port taken"),
]  # fmt: skip


@pytest.mark.parametrize(("last", "sentence"), REPORTS)
def test_the_report_says_what_was_done_and_what_old_generations_serve(last, sentence):
    assert report(status(**last)) == [sentence]
    old = [LIVES, {**LIVES, "version": None, "sessions": 1, "seconds_left": 12.3}]
    assert report({**status(**last), "old_generations": old}) == [
        sentence,
        "old generation 3 (0.1.0) still serves 20 connections",
        "old generation 3 (unknown version) still serves 1 connection, for 12 s at the latest",
    ]
