# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules that rewrite clients' addresses, on a proxy and on a backend."""

from __future__ import annotations

from ansible_collections.trueip.l4proxy.tests.unit.plugins.module_utils._routing.doctor import cases
from ansible_collections.trueip.l4proxy.tests.unit.plugins.module_utils._routing.doctor.cases import (
    BACKEND,
    PROXY,
    PUBLISHED,
    SERVED,
    filtered,
)

CONTAINER = {"translated": {"172.17.0.2": "docker0"}}
SNAT_TO_PORT = "-A INPUT -p tcp -m tcp --dport {} -j SNAT --to-source 192.0.2.1"
UNKNOWN_SET = "-A POSTROUTING -p udp -m set --match-set x dst -j SNAT --to-source 192.0.2.1"
PROBLEMS = [
    (
        filtered(PROXY, "-A POSTROUTING -o eth0 -j MASQUERADE", table="nat"),
        "fail source_nat",
        "iptables nat POSTROUTING rewrites the source address of what the forwarder sends to 198.18.0.21. Those",
    ),
    (filtered(PROXY, UNKNOWN_SET, table="nat", applied=False, forwarder=None), "warn source_nat", "may rewrite"),
    (
        filtered(PROXY, SNAT_TO_PORT.format(80), table="nat"),
        "fail source_nat",
        "clients' packets to tcp port 80 of this proxy",
    ),
    (
        filtered(BACKEND, PUBLISHED, "-A POSTROUTING ! -o lo -j MASQUERADE", table="nat", **CONTAINER, **SERVED),
        "fail source_nat",
        "clients' packets that this backend sends on to 172.17.0.2. The server there",
    ),
    (
        filtered(BACKEND, SNAT_TO_PORT.format(8080), table="nat", **SERVED),
        "fail source_nat",
        "clients' packets to tcp port 8080 of this backend",
    ),
]
FINE = [
    *(
        ("source_nat", filtered(PROXY, f"-A POSTROUTING {rule}", table="nat"))
        for rule in (
            "-s 10.8.0.0/24 -o eth0 -j MASQUERADE",
            "-o wg0 -j MASQUERADE",
            "-m iprange --src-range 10.8.0.1-10.8.0.99 -j MASQUERADE",
            "-m iprange --dst-range 10.8.0.1-10.8.0.99 -o eth0 -j MASQUERADE",
            "-m conntrack --ctstate DNAT -j MASQUERADE",
            "-m conntrack --ctstatus DNAT -j MASQUERADE",
            "-d 10.0.0.0/8 -j MASQUERADE",
            "-p udp -j MASQUERADE",
            "-p tcp -m tcp --dport 25 -j MASQUERADE",
            "-m addrtype --src-type LOCAL -j MASQUERADE",
            "-m mark --mark 0x4000/0x4000 -j MASQUERADE",
            "-m owner --uid-owner 33 -j MASQUERADE",
        )
    ),
    *(
        ("source_nat", filtered(BACKEND, PUBLISHED, f"-A POSTROUTING {rule}", table="nat", **CONTAINER, **SERVED))
        for rule in (
            "-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
            "-s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE",
            "-o eth0 -j MASQUERADE",
        )
    ),
    ("source_nat", filtered(BACKEND, "-A POSTROUTING -o eth0 -j MASQUERADE", table="nat", **SERVED)),
    ("source_nat", filtered(BACKEND, "-A PREROUTING -p tcp -j DNAT --to-destination 172.17.0.2", table="nat")),
]

test_a_problem_is_reported_with_a_reason_and_a_fix = cases.reports(PROBLEMS)
test_a_similar_host_without_the_problem_is_fine = cases.is_fine(FINE)
