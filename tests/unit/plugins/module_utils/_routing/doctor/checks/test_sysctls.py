# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kernel settings and routes that break the path."""

from __future__ import annotations

from dataclasses import replace

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts.model import Backend
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Sysctl
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.route_query import RouteAnswer

from .. import cases
from ..cases import (
    BACKEND,
    BY_SOCKET,
    PROXY,
    ROUTER,
    A,
    B,
    backend,
    foreign_rule,
    owned,
    peer,
    proxy,
    setting,
    with_rules,
)

ACCEPTED = replace(cases.RETURN_PATH, sysctls=(Sysctl("net.ipv4.tcp_fwmark_accept", "1"),))
NO_ROUTE = RouteAnswer("unreachable", error="ENETUNREACH")
REFUSED = RouteAnswer("refused", error="EXDEV")
ANY_PROTOCOL = with_rules(PROXY, foreign_rule(priority=9, src=B, table=20100))
ROUTES = setting(PROXY, ip_forward="1")
PROBLEMS = [
    (peer(unmarked=NO_ROUTE, arrival=REFUSED), "fail default_route", "(ENETUNREACH). The kernel routes each reply"),
    (peer(documents=(ACCEPTED,), unmarked=NO_ROUTE, arrival=REFUSED), "warn default_route", "routes a UDP reply once"),
    (setting(peer(arrival=REFUSED), conf__eth0__rp_filter="1"), "fail rp_filter", "rp_filter on eth0 is 1 (strict"),
    (setting(peer(arrival=REFUSED), conf__all__rp_filter="2"), "fail rp_filter", "rp_filter on eth0 is 2 (loose"),
    (setting(proxy(documents=(BY_SOCKET,), **owned(BY_SOCKET), replies={}), conf__all__src_valid_mark="1"),
     "fail src_valid_mark", "src_valid_mark on eth0 is 1"),
    (ANY_PROTOCOL, "fail arp", "for every address, including the router's, because of `ip rule 9: from"),
    (backend(redirected={"192.0.2.7": ROUTER}), "fail redirected", "replies to 192.0.2.7 go to 198.18.0.1"),
    (ROUTES, "warn ip_forward", "this proxy routes ipv4"),
    (replace(ROUTES, backends=(Backend("ipv4", "172.17.0.2", "docker0", True),)), "fail ip_forward",
     "routes for backend 172.17.0.2: net.ipv4.ip_forward is 1, and the backend is behind docker0"),
    (setting(BACKEND, conf__all__accept_redirects="1"), "warn accept_redirects", "eth0 accepts ipv4"),
    (setting(PROXY, conf__eth0__send_redirects="1"), "warn send_redirects", "eth0 sends ICMP redirects"),
]  # fmt: skip
FINE = [
    ("rp_filter", setting(BACKEND, conf__eth0__rp_filter="1")),
    ("default_route", peer(tracked=False, unmarked=NO_ROUTE)),
    ("redirected", backend(redirected={"192.0.2.7": A})),
    ("arp", setting(ANY_PROTOCOL, conf__all__arp_ignore="1")),
    ("src_valid_mark", setting(PROXY, conf__all__src_valid_mark="1")),
    ("accept_redirects", setting(BACKEND, conf__all__accept_redirects="1", conf__eth0__forwarding="1")),
]

test_a_problem_is_reported_with_a_reason_and_a_fix = cases.reports(PROBLEMS)
test_a_similar_host_without_the_problem_is_fine = cases.is_fine(FINE)
