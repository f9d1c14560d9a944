# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The conntrack table, the range of ephemeral ports, and UDP servers that listen on every address."""

from __future__ import annotations

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts.model import Conntrack, Socket
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Address, KernelObject

from ... import fakes
from .. import cases
from ..cases import PROXY, B, backend, listening_on, owned, peer, setting

# The strategy "address": rules match the source address, without marks.
RULE = {"family": "ipv4", "priority": 1100, "src": B, "action": "lookup", "table": 20111}
BY_ADDRESS = documents.load({**fakes.RETURN_PATH, "marks": [], "rules": [RULE]})
TWO_ADDRESSES = tuple(KernelObject(Address("ipv4", address, "eth0"), 0, "ipv4") for address in (B, "198.18.0.33"))
SOCKETS, PORTS = (Socket("udp", "0.0.0.0", 53),), (("udp", 53),)
PROBLEMS = [
    (backend(conntrack=Conntrack(950, 1000)), "fail conntrack", "holds 950 of at most 1000"),
    (backend(conntrack=Conntrack(1, 4096)), "warn conntrack", "at most 4096"),
    (backend(conntrack=Conntrack(1, 262144, 7)), "warn conntrack", "7 packets were dropped"),
    (backend(documents=(BY_ADDRESS,), replies={}, **owned(BY_ADDRESS), sockets=SOCKETS, ports=PORTS), "fail udp_source",
     "rules match only the source address"),
    (backend(addresses=TWO_ADDRESSES, sockets=SOCKETS, ports=PORTS), "warn udp_source", "has several addresses"),
    (setting(PROXY, ip_local_port_range="40000 41000"), "warn port_range", "only 1001 ephemeral ports"),
    (setting(PROXY, ip_local_port_range="32 60999"), "warn port_range", "tcp port 80 of every address, which is in"),
    (setting(listening_on("::"), ip_local_port_range="8005 40000"), "warn port_range",
     "tcp port 8005-8010 of every address, which is in"),
]  # fmt: skip
FINE = [
    ("conntrack", peer(conntrack=Conntrack(999, 1000), tracked=False)),
    ("port_range", listening_on("0.0.0.0")),
    ("port_range", setting(listening_on("198.18.0.11"), ip_local_port_range="8005 40000")),
    ("udp_source", backend(sockets=SOCKETS, ports=PORTS)),
    ("udp_source", backend(addresses=TWO_ADDRESSES, sockets=SOCKETS)),
    ("udp_source", backend(addresses=TWO_ADDRESSES, ports=PORTS)),
]

test_a_problem_is_reported_with_a_reason_and_a_fix = cases.reports(PROBLEMS)
test_a_similar_host_without_the_problem_is_fine = cases.is_fine(FINE)
