# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Services and servers that a new document does not list."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.documents import Document
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.kernel_service import (
    KernelService,
    Server,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Rule
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import service_drain
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile.state import State

B, C, D = (Server(name, f"198.18.0.{number}", 8080) for name, number in (("b", 21), ("c", 22), ("d", 23)))
B6 = Server("b", "2001:db8::21", 8080)
WEB = KernelService("web", "ipv4", "tcp", "198.18.0.100", 80, (B, C, D))
DNS = replace(WEB, name="dns", protocol="udp", port=53)
WEB6 = replace(WEB, family="ipv6", address="2001:db8::100", servers=(B6,))
BYPASS = Rule("ipv4", 1099, table=254, fwmark=255, fwmask=255)
BYPASS6 = replace(BYPASS, family="ipv6")


def document(*services: KernelService) -> Document:
    families = sorted({service.family for service in services})
    rules = tuple(rule for rule in (BYPASS, BYPASS6) if rule.family in families)
    return Document("kernel_datapath", 204, rules, services=services, forwarding=tuple(families))


def of(service: KernelService, *servers: Server, retire_at: int | None = None) -> KernelService:
    return replace(service, servers=servers, retiring=True, retire_at=retire_at)


def with_times(services) -> set:
    return {(service, service.retiring, service.retire_at) for service in services}


STORED = document(replace(WEB, servers=(B, C)), of(WEB, D, retire_at=500))
KEPT = (replace(WEB, servers=(B, C)), of(WEB, D, retire_at=500))


@pytest.mark.parametrize(("listed", "have", "expected", "begins"), [
    ([WEB, DNS], [WEB, DNS], [], False),
    ([WEB], [WEB, DNS], [of(DNS, B, C, D, retire_at=1000)], True),
    ([replace(DNS, servers=(B,))], [DNS], [of(DNS, C, D, retire_at=1000)], True),
    # What retires already keeps its time; one that leaves now has its own.
    ([replace(WEB, servers=(B, C))], KEPT, [of(WEB, D, retire_at=500)], False),
    ([replace(WEB, servers=(B,))], KEPT, [of(WEB, C, retire_at=1000), of(WEB, D, retire_at=500)], True),
    ([], KEPT, [of(WEB, B, C, retire_at=1000), of(WEB, D, retire_at=500)], True),
    # One that comes back retires no longer.
    ([WEB], KEPT, [], False),
])  # fmt: skip
def test_what_leaves_retires(listed, have, expected, begins):
    retired = service_drain.begin(document(*listed), have, STORED, 1000.5)
    assert with_times(retired.services) == with_times(expected)
    assert retired.begins == begins


MOVED = replace(WEB, address="198.18.0.101")


@pytest.mark.parametrize(("listed", "have", "kept"), [
    ([WEB], [WEB, DNS], [DNS]),
    ([WEB], [WEB6], [WEB6]),
    ([], [WEB], [WEB]),
    # A server belongs to one service, so the other one keeps its connections only; and so do servers that have left.
    ([MOVED], [WEB], [of(WEB, B, C, D)]),
    ([replace(WEB, servers=(B,))], [replace(WEB, servers=(B, C)), of(WEB, D)], [of(WEB, C, D)]),
    ([replace(WEB, servers=(B,))], [replace(WEB, servers=(B, C)), of(WEB, D, retire_at=5)],
     [of(WEB, C), of(WEB, D, retire_at=5)]),
])  # fmt: skip
def test_a_run_without_purge_has_a_document_of_all_that_can_be_stored(listed, have, kept):
    found = service_drain.superset(document(*listed), State((BYPASS, BYPASS6), services=tuple(have)), None)
    assert with_times(found.services) == with_times([*listed, *kept])
    loaded = documents.load(documents.dump(found))
    assert with_times(loaded.services) == with_times(found.services)
    assert set(loaded.forwarding) == {service.family for service in found.services}
