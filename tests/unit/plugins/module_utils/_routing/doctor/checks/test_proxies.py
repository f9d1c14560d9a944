# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a backend's proxies are direct neighbours at the expected MAC addresses."""

from __future__ import annotations

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts.model import Silent

from .. import cases
from ..cases import PEER, ROUTER, peer

SAME_MAC = {"router": ROUTER, "router_mac": PEER.mac}
PROBLEMS = [
    (peer(is_local=True, dev=None), "fail proxy_on_link", "is this host's own"),
    (peer(dev=None, own=None), "fail proxy_on_link", "198.18.0.11) is not directly connected"),
    (peer(links={"eth0": True, "eth1": True}, wanted_dev="eth1"), "fail proxy_on_link",
     "is on eth0, but the document expects it on eth1"),
    (peer(mac="02:00:00:00:00:aa"), "fail proxy_mac", "but 198.18.0.11 is at 02:00:00:00:00:aa"),
    (peer(**SAME_MAC), "warn proxy_mac", "same MAC as the router on eth0: 02:00:00:00:00:11 (also 198.18.0.1)"),
    (peer(**SAME_MAC, same_mac=("198.18.0.22",)), "fail proxy_mac", "(also 198.18.0.1, 198.18.0.22)"),
    (peer(mac=None), "warn proxy_mac", "does not answer ARP or ND on eth0"),
    (cases.backend(silent=(Silent("a", "198.18.0.11", "noon"),)), "warn proxy_silent",
     "proxy a has not answered the keeper at 198.18.0.11 since noon"),
]  # fmt: skip
FINE = [
    ("proxy_mac", peer(mac=None, has_mac=False)),
    ("proxy_mac", peer(router=ROUTER, router_mac="02:00:00:00:00:01", same_mac=("198.18.0.12",))),
]

test_a_problem_is_reported_with_a_reason_and_a_fix = cases.reports(PROBLEMS)
test_a_similar_host_without_the_problem_is_fine = cases.is_fine(FINE)
