# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which connections need a retiring object, beside the objects that a document lists."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.documents import Document
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.kernel_service import (
    KernelService,
    Server,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Address, Mark, Route, Rule
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import needs
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile.needs import (
    UNKNOWN,
    Foreign,
    Forwarded,
    From,
    Marked,
    To,
)

BY_MARK = Rule("ipv4", 1100, table=20111, fwmark=11, fwmask=255)
BY_SERVED_PORT = replace(BY_MARK, priority=1099, ip_proto=6, sport=(8080, 8080))
GUARD = Rule("ipv4", 1101, action="unreachable", fwmark=11, fwmask=255)
ROUTE = Route("ipv4", 20111, via="198.18.0.11", dev="eth0")
MARK = Mark("a", 11, 255, via=("198.18.0.11",))
ADDRESS = Address("ipv4", "198.18.0.121", "eth0")
BY_ADDRESS = Rule("ipv4", 1100, table=21111, iif="lo", src="198.18.0.121")
BY_PORT = Rule("ipv4", 1100, table=21111, iif="lo", ip_proto=17, sport=(53, 53))
GUARD_OF_PORT = Rule("ipv4", 1101, action="unreachable", iif="lo", ip_proto=17, sport=(53, 53))
FROM_ADDRESS = Route("ipv4", 21111, via="198.18.0.11", dev="eth0", src="198.18.0.121")
DELIVERED = Rule("ipv4", 1100, table=20100, src="198.18.0.21", ip_proto=6)
OF_ICMP = replace(DELIVERED, ip_proto=1)
SOCKET = Mark("a", 11, 255, transparent=True)
SINGLE = replace(MARK, conntrack=False)

TO = To("198.18.0.121/32")
TO_PORT = To("198.18.0.121/32", frozenset({(53, 53)}))
IPV4 = Marked(11, 255, "ipv4")


BYPASS = Rule("ipv4", 1099, table=254, fwmark=255, fwmask=255)
WEB = KernelService("web", "ipv4", "tcp", "198.18.0.100", 80, (Server("b", "198.18.0.21", 8080),))
OF_WEB = Forwarded(6, "198.18.0.100", 80, frozenset({("198.18.0.21", 8080)}))


def retiring(*values, listed=(), owner: str = "return_path"):
    """The needs of the first value in a document in which all values retire, and ``listed`` do not."""
    every = [*(replace(value, retiring=True, retire_at=9) for value in values), *listed]
    kinds = {"rules": Rule, "routes": Route, "marks": Mark, "addresses": Address, "services": KernelService}
    sections = {name: tuple(value for value in every if isinstance(value, kind)) for name, kind in kinds.items()}
    return set(needs.of(every[0], Document(owner, 202, **sections)))


@pytest.mark.parametrize(("values", "expected"), [
    ([WEB], {OF_WEB}),
    ([BYPASS, WEB], {OF_WEB}),
    ([replace(BYPASS, family="ipv6"), WEB], set()),
    ([BY_MARK], {IPV4}),
    ([GUARD], {IPV4}),
    ([MARK], {Marked(11, 255)}),
    ([ROUTE, BY_MARK], {IPV4}),
    ([ROUTE, BY_MARK, replace(BY_MARK, fwmark=12)], {IPV4, replace(IPV4, mark=12)}),
    ([ROUTE], set()),
    ([SINGLE], {Marked(11, 255, tracked=False)}),
    ([BY_MARK, SINGLE], {replace(IPV4, tracked=False)}),
    ([BY_MARK, SINGLE, MARK], {IPV4}),
    ([BY_SERVED_PORT], {replace(IPV4, port=(6, 8080))}),
    ([BY_SERVED_PORT, replace(BY_SERVED_PORT, fwmark=12), replace(BY_SERVED_PORT, fwmark=13, ip_proto=17)],
     {replace(IPV4, mark=mark, port=(6, 8080)) for mark in (11, 12)}),
    ([ADDRESS], {TO}),
    ([BY_ADDRESS], {TO}),
    ([ADDRESS, BY_PORT, FROM_ADDRESS], {TO_PORT}),
    ([BY_PORT, FROM_ADDRESS], {TO_PORT}),
    ([GUARD_OF_PORT, BY_PORT, FROM_ADDRESS], {TO_PORT}),
    ([BY_PORT], UNKNOWN),
    ([FROM_ADDRESS, BY_ADDRESS], {TO}),
    ([replace(BY_MARK, fwmark=None, fwmask=None, dst="198.18.9.0/24")], UNKNOWN),
])  # fmt: skip
def test_what_is_needed_on_a_backend(values, expected):
    assert retiring(*values) == expected


@pytest.mark.parametrize(("values", "listed", "expected"), [
    ([replace(BY_MARK, priority=900)], [BY_MARK], set()),
    ([BY_MARK], [GUARD], {IPV4}),
    ([ADDRESS], [replace(ADDRESS, dev="eth1")], {TO}),
    ([ROUTE, BY_MARK], [replace(ROUTE, metric=7)], set()),
    # Connections to an address with a rule of its own find their way without the mark.
    ([MARK], [BY_ADDRESS], {Marked(11, 255, other_ways=frozenset({"198.18.0.121/32"}))}),
    # One id, with and without conntrack.
    ([MARK], [SINGLE, BY_MARK], {Marked(11, 255, sockets=True)}),
    ([SINGLE], [MARK, BY_MARK], set()),
    ([MARK], [replace(SINGLE, mask=511)], {Marked(11, 255)}),
])  # fmt: skip
def test_what_replaces_an_object_serves_its_connections_too(values, listed, expected):
    assert retiring(*values, listed=listed) == expected


@pytest.mark.parametrize(("values", "listed", "expected"), [
    ([DELIVERED], [], {From("198.18.0.21/32", 6)}),
    ([OF_ICMP], [], {From("198.18.0.21/32")}),
    ([SOCKET], [], {Foreign()}),
    ([BY_MARK, SOCKET], [], {Foreign("ipv4")}),
    ([SOCKET], [DELIVERED], {Foreign(None, frozenset({"198.18.0.21/32"}))}),
    ([DELIVERED], [SOCKET], set()),
])  # fmt: skip
def test_what_is_needed_on_a_proxy(values, listed, expected):
    assert retiring(*values, listed=listed, owner="local_delivery") == expected
