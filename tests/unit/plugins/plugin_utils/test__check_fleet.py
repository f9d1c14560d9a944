# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._check_fleet import check_fleet

from .fleet_data import BOTH, WEB, errors, facts, fleet, hostvars


def test_the_check_of_a_fleet_finds_every_fault_of_every_host():
    broken = [{**WEB, "backends": ["b:0", "c:80"]}]
    variables = hostvars(c={"ansible_facts": facts(22, ipv4={"address": "10.0.0.1", "prefix": "24"}, ipv6=[])})
    roles = {"forwarder": {}, "return_path": {}}
    views = [(fleet(name, broken, variables), roles) for name in ("a", "b", "c")]
    found = errors(check_fleet, views)
    assert len(found) == len(set(found))
    assert any("shares no subnet with backend c" in one for one in found)


def test_two_proxies_with_the_same_id_are_refused_also_without_a_backend_in_the_run():
    variables = hostvars(a={"l4proxy_id": 7}, a2={"l4proxy_id": 7})
    views = [(fleet(name, [WEB], variables, **BOTH), {"forwarder": {}}) for name in ("a", "a2")]
    (found,) = errors(check_fleet, views)
    assert found.startswith("proxies a and a2 have the same id, 7")
