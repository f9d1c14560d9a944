# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.trueip.l4proxy.plugins.filter import (
    check_fleet,
    forwarder_config,
    local_delivery,
    peers,
    probe_targets,
    return_path,
    return_path_strategy,
)

from tests.unit.plugins.plugin_utils.fleet_data import WEB, hostvars, view

FILTERS = [
    (forwarder_config, "a", ()),
    (local_delivery, "a", ()),
    (return_path, "b", ()),
    (return_path_strategy, "b", ()),
    (probe_targets, "a", ()),
]


def called(module, *arguments):
    (derive,) = module.FilterModule().filters().values()
    return derive(*arguments)


@pytest.mark.parametrize(("module", "host", "more"), FILTERS)
def test_a_filter_is_named_as_its_file_and_derives_for_the_host_it_is_seen_from(module, host, more):
    assert list(module.FilterModule().filters()) == [module.__name__.rpartition(".")[2]]
    assert called(module, [WEB], view(host), hostvars(), *more)


@pytest.mark.parametrize(("module", "host", "more"), FILTERS)
def test_undefined_services_are_one_sentence(module, host, more):
    with pytest.raises(AnsibleFilterError, match=r"^l4proxy_services is not defined on this host; it belongs in"):
        called(module, None, view(host), hostvars(), *more)


def test_many_faults_are_a_list():
    with pytest.raises(
        AnsibleFilterError, match=r"^2 faults:\n  - l4proxy_services\[0\].* is not in the inventory; .*\n  - "
    ):
        called(forwarder_config, [{**WEB, "backends": ["x:1", "y:1"]}], view("a"), hostvars())


def checked(services, **variables):
    fleet = hostvars()
    for name, values in fleet.items():
        values["__l4proxy_fleet"] = {**view(name), "reachable": True}
        values.update(variables.get(name, {}))
    return called(check_fleet, services, ["a", "b", "c", "d"], fleet)


def test_a_fleet_without_fault():
    assert checked([WEB]) == []


def test_the_check_says_what_the_derivation_would():
    (found,) = checked(None)
    assert found.startswith("l4proxy_services is not defined on this host; it belongs in group_vars/all")


def test_the_check_asks_nothing_of_a_role_that_is_absent():
    only_b = [{**WEB, "backends": ["b:1"]}]
    absent = {"return_path_state": "absent"}
    (found,) = checked(only_b, d=absent)
    assert found.startswith("c is in the group backends, but no service")
    assert checked(only_b, c=absent, d=absent) == []


def test_the_check_leaves_out_hosts_that_did_not_answer():
    (found,) = checked([{**WEB, "backends": ["b:1", "c:1"]}], d={"ansible_facts": {}})
    assert found.startswith("d is in the group backends")
    assert (
        checked([{**WEB, "backends": ["b:1", "c:1"]}], d={"__l4proxy_fleet": {**view("d"), "reachable": False}}) == []
    )


def test_the_check_refuses_an_unknown_strategy():
    assert checked([WEB], b={"return_path_strategy": "tunnel"}) == [
        "return_path_strategy of b: 'tunnel' is not a strategy of this version; use mark, address, fwmark_accept, auto"
    ]


def test_the_check_knows_what_the_roles_pass_on():
    (found,) = checked([WEB], a={"forwarder_local_delivery": "guess"})
    assert (
        found == "forwarder_local_delivery of a: 'guess' is not a method of this version; use rules, socket_mark, auto"
    )


def test_the_check_knows_the_roles_own_settings():
    assert checked([WEB], a={"forwarder_drain_timeout": "60"}) == []
    (found,) = checked([WEB], a={"forwarder_drain_timeout": "soon"})
    assert found.startswith("drain_timeout: ")


def test_the_check_passes_over_hosts_that_were_not_asked():
    fleet = hostvars()
    fleet["a"]["__l4proxy_fleet"] = {**view("a"), "reachable": True}
    assert called(check_fleet, [WEB], ["a", "b"], fleet) == []


def test_peers_of_services_that_cannot_be_read():
    assert called(peers, None, view("a"), hostvars(), ["a"]) == []


def test_peers():
    assert called(peers, [WEB], view("a"), hostvars(), ["b"]) == ["b", "a"]
