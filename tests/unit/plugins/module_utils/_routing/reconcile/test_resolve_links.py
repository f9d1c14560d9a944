# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Mark
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import Refused
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.neighbour_messages import (
    DECLARED_MAC,
    LINK,
    NOTHING,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import resolve_links

from tests.unit.tables import rows

from ..fakes import FakeKernel

A, A2 = Mark("a", 11, 255, (), ("10.8.0.1", "fd00:8::1")), Mark("a2", 12, 255, (), ("10.8.0.3",))
DECLARED = Mark("a", 11, 255, ("02:00:00:00:00:11",), ("198.18.0.11",))


def kernel(**kinds: str) -> FakeKernel:
    made = FakeKernel()
    made.near = {"10.8.0.1": "wg0", "fd00:8::1": "wg0", "10.8.0.3": "wg0", "198.18.0.11": "eth0"}
    made.kinds = {"wg0": LINK, **kinds}
    return made


def test_a_proxy_behind_a_point_to_point_link_is_recognised_by_the_link_if_it_exists():
    assert [mark.iif for mark in resolve_links.resolve(kernel(), (A, DECLARED))] == ["wg0", None]
    made = kernel()
    made.near = {}
    assert resolve_links.resolve(made, (A,)) == (A,)


REFUSED = [
    ("two proxies", (A, A2), {}, {}, "proxies a and a2 are both behind wg0, which has no MAC addresses"),
    ("several ends", (A,), {"wg0": NOTHING}, {}, "wg0 has no MAC addresses and more than one other end"),
    ("no ARP", (A,), {"wg0": DECLARED_MAC}, {}, "wg0 does not use ARP, so the MAC of proxy a"),
    ("a link a family", (A,), {}, {"fd00:8::1": "eth0"}, "proxy a is behind eth0 and wg0, and wg0 has no MAC"),
]


@pytest.mark.parametrize(("marks", "kinds", "near", "words"), **rows(REFUSED))
def test_a_link_that_cannot_distinguish_proxies_is_refused(marks, kinds, near, words):
    made = kernel(**kinds)
    made.near.update(near)
    with pytest.raises(Refused, match=words) as refusal:
        resolve_links.resolve(made, marks)
    assert "return_path_strategy: address" in str(refusal.value)
