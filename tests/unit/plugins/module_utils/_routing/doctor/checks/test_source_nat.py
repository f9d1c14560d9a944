# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules that rewrite clients' addresses, on a proxy and on a backend."""

from __future__ import annotations

from .. import cases
from ..cases import BACKEND, PROXY, PUBLISHED, SERVED, filtered

CONTAINER = {"translated": {"172.17.0.2": "docker0"}}
INPUT = "INPUT -p tcp -m tcp --dport {} -j SNAT --to-source 192.0.2.1"


def nat(facts, *rules, **changes):
    return filtered(facts, *(f"-A {rule}" for rule in rules), table="nat", **changes)


def published(rule):
    """A backend that sends port 8080 on to a container."""
    return nat(BACKEND, PUBLISHED, rule, **CONTAINER, **SERVED)


PROBLEMS = [
    (nat(PROXY, "POSTROUTING -o eth0 -j MASQUERADE"), "fail source_nat",
     "iptables nat POSTROUTING rewrites the source address of what the forwarder sends to 198.18.0.21. Those"),
    (nat(PROXY, "POSTROUTING -p udp -m set --match-set x dst -j SNAT", applied=False, forwarder=None),
     "warn source_nat", "may rewrite"),
    (nat(PROXY, INPUT.format(80)), "fail source_nat", "clients' packets to tcp port 80 of this proxy"),
    (published("POSTROUTING ! -o lo -j MASQUERADE"), "fail source_nat",
     "clients' packets that this backend sends on to 172.17.0.2. The server there"),
    (nat(BACKEND, INPUT.format(8080), **SERVED), "fail source_nat", "packets to tcp port 8080 of this backend"),
]  # fmt: skip

OTHER_TRAFFIC_OF_A_PROXY = [
    "-s 10.8.0.0/24 -o eth0", "-o wg0", "-d 10.0.0.0/8", "-p udp", "-p tcp -m tcp --dport 25",
    "-m iprange --src-range 10.8.0.1-10.8.0.99", "-m iprange --dst-range 10.8.0.1-10.8.0.99 -o eth0",
    "-m conntrack --ctstate DNAT", "-m conntrack --ctstatus DNAT", "-m addrtype --src-type LOCAL",
    "-m mark --mark 0x4000/0x4000", "-m owner --uid-owner 33",
]  # fmt: skip
OTHER_TRAFFIC_OF_A_BACKEND = [
    "-s 172.17.0.0/16 ! -o docker0", "-s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80", "-o eth0",
]  # fmt: skip

FINE = [
    *(("source_nat", nat(PROXY, f"POSTROUTING {match} -j MASQUERADE")) for match in OTHER_TRAFFIC_OF_A_PROXY),
    *(("source_nat", published(f"POSTROUTING {match} -j MASQUERADE")) for match in OTHER_TRAFFIC_OF_A_BACKEND),
    ("source_nat", nat(BACKEND, "POSTROUTING -o eth0 -j MASQUERADE", **SERVED)),
    ("source_nat", nat(BACKEND, "PREROUTING -p tcp -j DNAT --to-destination 172.17.0.2")),
]

test_a_problem_is_reported_with_a_reason_and_a_fix = cases.reports(PROBLEMS)
test_a_similar_host_without_the_problem_is_fine = cases.is_fine(FINE)
