# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import (
    HostAddress,
    host_from_variables,
    parse_address,
)
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_addresses import (
    applied_addresses,
    placed,
    read,
)

from .fleet_data import errors, facts

WHERE = "return_path_addresses of b"


def test_a_single_address_needs_no_list():
    found = read("b", {"a": "198.18.0.121/24", "a2": ["198.18.0.122", "2001:db8::122"]}, ["a", "a2"])
    texts = {proxy: [str(one.address) for one in addresses] for proxy, addresses in found.items()}
    assert texts == {"a": ["198.18.0.121"], "a2": ["198.18.0.122", "2001:db8::122"]}


@pytest.mark.parametrize(("value", "sentence"), [
    (["198.18.0.121"], f"{WHERE}: expected a mapping from a proxy's name to its addresses"),
    ({"z": "198.18.0.121"}, f"{WHERE}: 'z' is not in the group of proxies (a, a2)"),
    ({"a": ["here"]}, f"{WHERE} for a: 'here' is not an IP address"),
    ({"a": ["127.0.0.1"]}, f"{WHERE} for a: 127.0.0.1 is not an address at which a proxy can reach it"),
    ({"a": ["198.18.0.121", "198.18.0.122"]}, f"{WHERE} for a: 198.18.0.121 and 198.18.0.122 are both IPv4"),
    ({"a": "198.18.0.121", "a2": "198.18.0.121/24"}, f"{WHERE}: 198.18.0.121 is given to a and to a2"),
])  # fmt: skip
def test_a_bad_value_is_refused(value, sentence):
    found = errors(read, "b", value, ["a", "a2"])
    assert [one for one in found if one.startswith(sentence)], found


def test_all_faults_are_reported_together():
    assert len(errors(read, "b", {"z": "x", "a": ["y"]}, ["a"])) == 3


def test_applied_addresses_include_retiring_ones():
    addresses = [{"address": "198.18.0.121/24"}, {"address": "2001:db8::121", "retiring": True}]
    assert {str(one) for one in applied_addresses({"addresses": addresses})} == {"198.18.0.121", "2001:db8::121"}
    assert applied_addresses(None) == set()


def test_an_address_is_placed_on_the_interface_with_its_subnet():
    host = host_from_variables("b", {"ansible_facts": facts(21)})
    given = [parse_address(text, "") for text in ("198.18.0.121/32", "10.0.0.1")]
    near, far = placed(host, given).addresses
    assert (near.device, near.prefix) == ("eth0", 24)
    assert far == HostAddress(given[1].address)
