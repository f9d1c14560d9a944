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
)

from tests.unit.plugins.plugin_utils.fleet_data import WEB, hostvars, view

FILTERS = [
    (forwarder_config, "a", ()),
    (local_delivery, "a", ()),
    (return_path, "b", ()),
    (probe_targets, "a", ()),
    (peers, "a", (["a"],)),
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


def test_the_check_says_what_it_checked():
    assert checked([WEB]) == "1 services, 4 hosts: every document can be derived"


def test_the_check_asks_nothing_of_a_role_that_is_absent():
    only_b = [{**WEB, "backends": ["b:1"]}]
    with pytest.raises(AnsibleFilterError, match="c is in the group backends, but in no service"):
        checked(only_b, d={"return_path_state": "absent"})
    absent = {"return_path_state": "absent"}
    assert checked(only_b, c=absent, d=absent).startswith("1 services, 4 hosts")


def test_the_check_leaves_out_hosts_that_did_not_answer():
    down = {"__l4proxy_fleet": {**view("d"), "reachable": False}}
    assert checked([WEB], d=down).startswith("1 services, 3 hosts")


def test_the_check_refuses_an_unknown_strategy():
    with pytest.raises(AnsibleFilterError, match="'tunnel' is not in this version; use mark"):
        checked([WEB], b={"return_path_strategy": "tunnel"})
