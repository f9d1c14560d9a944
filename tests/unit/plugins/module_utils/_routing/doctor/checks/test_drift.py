# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Differences between the host and its documents, and the kernel's routes for sample replies."""

from __future__ import annotations

from dataclasses import replace

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts.model import Drift
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import (
    Address,
    Mark,
    Rule,
    Setting,
    Sysctl,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.route_query import RouteAnswer
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile.change import Change

from .. import cases
from ..cases import BY_OTHER, RECEIVED, ROUTER, backend, proxy

ROUTE = cases.RETURN_PATH.routes[0]
WITH_SOURCE = replace(cases.RETURN_PATH, routes=(replace(ROUTE, src="198.18.0.33"),))
NO_ROUTE = RouteAnswer("unreachable", error="ENETUNREACH")


def drifted(kind, verb, before=None, after=None):
    return backend(drift=(Drift("return_path", (Change(kind, verb, before, after),)),))


PROBLEMS = [
    (drifted("sysctl", "replace", Setting("net.ipv4.x", "1"), Sysctl("net.ipv4.x", "0")), "fail settings",
     "set sysctl net.ipv4.x: 1 -> 0"),
    (backend(documents=(WITH_SOURCE,)), "fail addresses", "198.18.0.33 is not an address of this host"),
    (drifted("address", "add", None, Address("ipv4", "198.18.0.33", "eth0")), "fail addresses", "add ip addr"),
    (backend(drift=(Drift("return_path", blocked=("waiting for x",)),)), "fail waiting", "waiting for x"),
    (drifted("route", "add", None, ROUTE), "fail routes", "add ip route default via"),
    (drifted("route", "replace", replace(ROUTE, via=ROUTER), ROUTE), "fail routes",
     "(now: ip route default via 198.18.0.1"),
    (drifted("rule", "add", None, Rule("ipv4", 1101, "unreachable", fwmark=11)), "fail rules", "unreachable"),
    (drifted("marks", "add", (), (Mark("a", 11, 255),)), "fail marks", "nft table of marks: a (0xb)"),
    (backend(replies=BY_OTHER), "fail lookup", "is unicast via 198.18.0.1 dev eth0 table 254; it should send it via"),
    (proxy(replies=dict.fromkeys(RECEIVED, NO_ROUTE)), "fail lookup", "should deliver it locally"),
]  # fmt: skip

test_a_problem_is_reported_with_a_reason_and_a_fix = cases.reports(PROBLEMS)
