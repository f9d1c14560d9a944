# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The keeper, the forwarder, and tools that revert the keeper's repairs."""

from __future__ import annotations

from dataclasses import replace

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts.model import (
    Contest,
    OldCode,
    Socket,
    Unit,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts.systemd import KEEPER, NETWORKD

from .. import cases
from ..cases import PROXY, UNITS, backend, listening_on, proxy

RUNS_NETWORKD = {"units": {**UNITS, NETWORKD: Unit("loaded", "active", "enabled")}}
CONTEST = Contest(3, "return_path", ("add ip rule 1100",), "systemd-networkd")


def forwarder(**changes):
    return proxy(forwarder=replace(PROXY.forwarder, **changes))


PROBLEMS = [
    (backend(contest=CONTEST), "fail contested",
     "systemd-networkd reverted the keeper's repair 3 times in a row: add ip rule 1100"),
    (forwarder(error="is bad"), "fail forwarder", "f.json is bad"),
    (forwarder(pid=None), "fail forwarder", "does not run"),
    (forwarder(capabilities=0), "fail forwarder", "no CAP_NET_RAW"),
    (forwarder(stopped=True), "fail forwarder", "is stopped by a signal"),
    (proxy(sockets=()), "fail listening", "nothing listens on 0.0.0.0 tcp port 80"),
    (listening_on("198.18.0.11", missing=(8003, 8007, 8008)), "fail listening",
     "nothing listens on 198.18.0.11 tcp port 8003, 8007-8008, which"),
    (proxy(sockets=(Socket("tcp", "127.0.0.1", 80),)), "fail listening", "0.0.0.0 tcp port 80"),
    (replace(listening_on("198.18.0.100"), addresses=(), own=frozenset()), "warn listening",
     "listens on 198.18.0.100, which is not an address of this host"),
    (forwarder(old_code=(OldCode(7, "0.2.0", 5, 90_000.0),)), "warn old_code",
     "5 connections are served by old code (version 0.2.0, generation 7), which was replaced 25 hours ago"),
    (forwarder(old_code=(OldCode(1, None, 1, 1e6),)), "warn old_code", "(of an unknown version, generation 1)"),
    (forwarder(not_saved="state.json: No space left"), "warn state_saved", "its state: state.json: No space"),
    (forwarder(backends=("198.18.0.9",)), "fail families", "names backend 198.18.0.9"),
    (backend(units={KEEPER: Unit("loaded", "inactive", "disabled")}), "warn keeper", "is inactive and disabled"),
    (backend(units={KEEPER: Unit("not-found", "inactive", "")}), "warn keeper", "is not installed"),
    (backend(**RUNS_NETWORKD), "warn networkd", "ManageForeignRoutingPolicyRules=no"),
]  # fmt: skip
FINE = [
    ("networkd", backend(**RUNS_NETWORKD, drop_ins=("x.conf",))),
    ("forwarder", proxy(forwarder=None)),
    ("old_code", proxy(forwarder=None)),
    ("old_code", forwarder(old_code=(OldCode(7, "0.2.0", 5, 86_000.0),))),
    ("state_saved", proxy(forwarder=None)),
    ("state_saved", forwarder()),
    ("listening", listening_on("0.0.0.0")),
    ("listening", listening_on("2001:db8::11")),
]

test_a_problem_is_reported_with_a_reason_and_a_fix = cases.reports(PROBLEMS)
test_a_similar_host_without_the_problem_is_fine = cases.is_fine(FINE)
