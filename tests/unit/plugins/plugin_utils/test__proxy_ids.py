# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import parse_address
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._proxy_ids import derived_id
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._shared_subnets import SharedSubnet

from tests.unit.tables import rows


def subnet(proxy: str, backend: str) -> SharedSubnet:
    return SharedSubnet(proxy=parse_address(proxy, ""), backend=parse_address(backend, ""))


IDS = [
    ("the host part", [subnet("198.18.0.11/24", "198.18.0.21")], 11),
    ("longer prefixes too", [subnet("198.18.0.140/25", "198.18.0.141")], 12),
    ("the prefix may be the backend's", [subnet("198.18.0.11", "198.18.0.21/24")], 11),
    ("the proxy knows no subnet", [subnet("198.18.0.11/32", "198.18.0.21/24")], 11),
    ("too short a prefix", [subnet("10.1.2.3/16", "10.1.7.8/16")], None),
    ("no prefix at all", [subnet("198.18.0.11", "198.18.0.21")], None),
    ("two subnets that disagree", [subnet("198.18.0.11/24", "198.18.0.21"), subnet("10.0.0.7/24", "10.0.0.8")], None),
    ("two subnets that agree", [subnet("198.18.0.11/24", "198.18.0.21"), subnet("10.0.0.11/24", "10.0.0.8")], 11),
    ("IPv4 first", [subnet("2001:db8::5/120", "2001:db8::6"), subnet("198.18.0.11/24", "198.18.0.2")], 11),
    ("IPv6 where it is long enough", [subnet("2001:db8::b/120", "2001:db8::6")], 11),
    ("IPv6 of the usual length", [subnet("2001:db8::b/64", "2001:db8::6")], None),
    ("the network's own address", [subnet("198.18.0.0/24", "198.18.0.21")], None),
]


@pytest.mark.parametrize(("subnets", "expected"), **rows(IDS))
def test_the_id_of_a_proxy_is_the_host_part_of_its_address(subnets, expected):
    assert derived_id(subnets) == expected
