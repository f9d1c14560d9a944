# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import host_from_variables
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._shared_subnets import shared_subnet

from .fleet_data import facts

DOCKER = {"docker0": {"device": "docker0", "ipv4": {"address": "172.17.0.1", "prefix": "16"}}}


def test_the_primary_address_is_preferred_to_a_secondary_one():
    secondary = [{"address": "198.18.0.3", "prefix": "24"}]
    proxy = host_from_variables("a", {"ansible_facts": facts(11, ipv4_secondaries=secondary)})
    backend = host_from_variables("b", {"ansible_facts": facts(21)})
    assert str(shared_subnet(proxy, backend, 4).proxy.address) == "198.18.0.11"


def test_a_bridge_that_both_hosts_have_is_not_a_shared_subnet():
    proxy = host_from_variables("a", {"ansible_facts": DOCKER})
    backend = host_from_variables("b", {"ansible_facts": DOCKER})
    assert shared_subnet(proxy, backend, 4) is None
