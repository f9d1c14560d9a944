# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._forwarder_config import forwarder_config
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._local_delivery import local_delivery
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._removal import removal
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path import return_path

from .fleet_data import NUMBERS, WEB, fleet, hostvars

GROUPS = {"all": list(NUMBERS), "proxies": ["a", "a2"], "backends": ["b", "c", "d"]}
SSH = {"name": "ssh", "listen": "0.0.0.0:22", "backends": ["d:22"], "proxies": ["a2"]}
HALF = {**SSH, "backends": ["d:22", {"host": "c", "enabled": False}]}
MAIL = {"name": "mail", "listen": "0.0.0.0:25", "backends": ["d:25", "d:26", "c:25"], "proxies": ["a", "a2"]}
FIRST = "add another one to it, or remove the service, and run the playbook trueip.l4proxy.site first"
FAULTS = [
    ("backends", "x", [WEB], "l4proxy_backend: x is not in the group backends; set it to the host to remove (b, c, d)"),
    ("backends", "", [WEB], "l4proxy_backend is not defined; set it to the host to remove (b, c, d)"),
    ("proxies", "b", [WEB], "l4proxy_proxy: b is not in the group proxies; set it to the host to remove (a, a2)"),
    ("backends", "d", [WEB, SSH], f"d is the only backend of service ssh (l4proxy_services[1]); {FIRST}"),
    ("backends", "d", [HALF], f"d is the only enabled backend of service ssh (l4proxy_services[0]); {FIRST}"),
    ("proxies", "a2", [WEB, SSH], f"a2 is the only proxy of service ssh (l4proxy_services[1]); {FIRST}"),
]


@pytest.mark.parametrize(("group", "name", "services", "fault"), FAULTS)
def test_a_removal_that_cannot_be_is_refused(group, name, services, fault):
    assert removal(services, GROUPS, group, name, hostvars())["faults"] == [fault]


def test_a_backend_that_is_disabled_can_be_removed_as_long_as_there_is_another():
    for services in ([HALF], [{**HALF, "backends": [{"host": name, "enabled": False} for name in ("c", "d")]}]):
        assert removal(services, GROUPS, "backends", "c", hostvars())["faults"] == []


def test_the_only_proxy_is_removed_with_the_fleet():
    (fault,) = removal([WEB], {**GROUPS, "proxies": ["a"]}, "proxies", "a", hostvars())["faults"]
    assert fault == "a is the only proxy; to remove the whole fleet, run the playbook trueip.l4proxy.teardown"


def test_the_edits_name_each_place_of_the_host_in_the_inventory():
    assert removal([WEB, MAIL], GROUPS, "backends", "d", hostvars()) == {
        "faults": [],
        "edits": [
            "remove d:8080 from the backends of service web (l4proxy_services[0].backends[2])",
            "remove d:25 from the backends of service mail (l4proxy_services[1].backends[0])",
            "remove d:26 from the backends of service mail (l4proxy_services[1].backends[1])",
            "remove d from the group backends",
        ],
    }
    variables = hostvars(b={"return_path_addresses": {"a": "198.18.0.120", "a2": "198.18.0.121"}})
    assert removal([WEB, MAIL], GROUPS, "proxies", "a2", variables) == {
        "faults": [],
        "edits": [
            "remove a2 from the proxies of service mail (l4proxy_services[1].proxies)",
            "return_path_addresses of b: remove the key a2",
            "remove a2 from the group proxies",
        ],
    }


def documents(services, variables, **changes):
    """Everything that is derived for the hosts that stay."""
    proxies, backends = changes["proxies"], changes["backends"]
    removed = changes.get("removed", ())
    seen = {name: fleet(name, services, variables, **changes) for name in NUMBERS if name not in removed}
    return {
        name: (
            name in proxies and [forwarder_config(one, name, {}), local_delivery(one, name)],
            name in backends and return_path(one, name),
        )
        for name, one in seen.items()
        if name in (*proxies, *backends)
    }


@pytest.mark.parametrize("name", ["a2", "d"])
def test_a_fleet_without_a_host_is_the_fleet_of_the_edited_inventory(name):
    services = [WEB, MAIL]
    addresses = {"return_path_strategy": "address", "return_path_addresses": {"a": "198.18.0.120/24"}}
    more = {"a": "198.18.0.120/24", "a2": "198.18.0.121/24"}
    before = hostvars(b={**addresses, "return_path_addresses": more})
    edited = [
        {
            **service,
            "backends": [one for one in service["backends"] if not str(one).startswith(name)],
            **({"proxies": [one for one in service["proxies"] if one != name]} if "proxies" in service else {}),
        }
        for service in services
    ]
    after = before if name == "d" else hostvars(b=addresses)
    groups = {key: [one for one in GROUPS[key] if one != name] for key in ("proxies", "backends")}
    kept = {key: GROUPS[key] for key in groups}
    assert documents(services, before, **kept, removed=[name]) == documents(edited, after, **groups)
    # Control: the host is in the documents as long as it is not removed.
    assert documents(services, before, **kept) != documents(edited, after, **groups)
