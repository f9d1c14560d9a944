# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.trueip.l4proxy.plugins.filter import (
    announce,
    check_fleet,
    forwarder_config,
    kernel_datapath,
    local_delivery,
    peers,
    probe_targets,
    return_path,
    return_path_strategy,
    virtual_ips,
)

from tests.unit.tables import rows

from ..plugin_utils.fleet_data import WEB, hostvars, view

FILTERS = [
    announce, forwarder_config, kernel_datapath, local_delivery, probe_targets, return_path, return_path_strategy,
    virtual_ips,
]  # fmt: skip


@pytest.mark.parametrize("module", FILTERS)
def test_a_filter_is_named_as_its_file_and_reports_undefined_services_in_one_sentence(module):
    host = "b" if module in (return_path, return_path_strategy) else "a"
    assert list(module.FilterModule().filters()) == [module.__name__.rpartition(".")[2]]
    assert called(module, [WEB], view(host), hostvars())
    with pytest.raises(AnsibleFilterError, match=r"^l4proxy_services is not defined on this host; it belongs in"):
        called(module, None, view(host), hostvars())


def called(module, *arguments):
    (derive,) = module.FilterModule().filters().values()
    return derive(*arguments)


def test_many_faults_are_a_list():
    sentence = r"^2 faults:\n  - l4proxy_services\[0\].* is not in the inventory; .*\n  - "
    with pytest.raises(AnsibleFilterError, match=sentence):
        called(forwarder_config, [{**WEB, "backends": ["x:1", "y:1"]}], view("a"), hostvars())


B_ONLY, B_AND_C = [{**WEB, "backends": ["b:1"]}], [{**WEB, "backends": ["b:1", "c:1"]}]
TWO = {"__l4proxy_fleet": {**view("a", proxies=["a", "a2"]), "reachable": True}}
MAGLEV = {"l4proxy_hash_table": "maglev"}
ABSENT = {"return_path_state": "absent"}
CHECKS = [
    ("no fault", [WEB], {}, None),
    ("no services", None, {}, "l4proxy_services is not defined on this host; it belongs in group_vars/all"),
    ("a role is absent on one of two idle hosts", B_ONLY, {"d": ABSENT}, "c is in the group backends, but no service"),
    ("roles are absent on both idle hosts", B_ONLY, {"c": ABSENT, "d": ABSENT}, None),
    ("an idle host without facts", B_AND_C, {"d": {"ansible_facts": {}}}, "d is in the group backends"),
    ("an idle host that did not answer", B_AND_C, {"d": {"__l4proxy_fleet": {**view("d"), "reachable": False}}}, None),
    ("a host whose facts were not gathered", [WEB], {name: {"__l4proxy_fleet": {}} for name in "bcd"}, None),
    ("an unknown strategy", [WEB], {"b": {"return_path_strategy": "tunnel"}},
     "return_path_strategy of b: 'tunnel' is not a strategy of this version; use mark, address, fwmark_accept, auto"),
    ("an option that a role passes on", [WEB], {"a": {"forwarder_local_delivery": "guess"}},
     "forwarder_local_delivery of a: 'guess' is not a method of this version; use rules, socket_mark, auto"),
    ("a setting of a role, as text", [WEB], {"a": {"forwarder_drain_timeout": "60"}}, None),
    ("settings of a role that are empty or numbers as text", [WEB],
     {"a": {"forwarder_drain_timeout": "", "forwarder_drain_memory": "512"}}, None),
    ("another hash table on every proxy", [WEB], {"a": {**TWO, **MAGLEV}, "a2": MAGLEV}, None),
    ("another hash table on one proxy", [WEB], {"a": TWO, "a2": MAGLEV},
     "l4proxy_hash_table is ring on a, and maglev on a2; a client would get another backend at each proxy, so set it "),
    ("an unknown hash table", [WEB], {"a": {"l4proxy_hash_table": "map"}},
     'hash_table: "map" is not supported; use one of ring, maglev'),
    ("virtual IPs on one proxy only", [WEB], {"a": {**TWO, "l4proxy_virtual_ips": [{"name": "x", "interface": "e0"}]}},
     'l4proxy_virtual_ips[0] is {"name": "x"} on a, and missing on a2; all proxies need the same list, so '),
    ("a virtual IP of no proxy", [WEB],
     {"a": {"l4proxy_virtual_ips": [{"name": "x", "addresses": ["::2"], "proxies": []}]}},
     "l4proxy_virtual_ips[0].proxies: must be a list of proxies, that with the highest priority first"),
    ("a wrong setting of a role", [WEB], {"a": {"forwarder_drain_timeout": "soon"}}, "drain_timeout: "),
]  # fmt: skip


@pytest.mark.parametrize(("services", "variables", "fault"), **rows(CHECKS))
def test_the_check_of_a_fleet_finds_the_faults_of_derivations_and_roles(services, variables, fault):
    fleet = hostvars()
    for name, values in fleet.items():
        values |= {"__l4proxy_fleet": {**view(name), "reachable": True}, **variables.get(name, {})}
    faults = called(check_fleet, services, ["a", "b", "c", "d"], fleet)
    assert [one.startswith(fault) for one in faults] == [True] if fault else faults == []


def test_peers_are_empty_if_the_services_are_wrong():
    assert called(peers, [WEB], view("a"), hostvars(), ["b"]) == ["b", "a"]
    assert called(peers, None, view("a"), hostvars(), ["a"]) == []
