# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._probe_targets import probe_targets

from .fleet_data import WEB, fleet, hostvars


def test_probe_targets_follow_the_families_listened_on():
    targets = probe_targets(fleet("a", [{**WEB, "listen": ["0.0.0.0:80"], "backends": ["b:8080"]}]), "a")
    assert targets == [{"name": "web: b", "address": "198.18.0.21", "port": 8080, "source": "198.51.100.11"}]


@pytest.mark.parametrize(("service", "ports"), [
    ({"listen": ["0.0.0.0:8000-8009"], "backends": ["b"]}, [8000]),  # the first one of a range
    ({"listen": ["0.0.0.0:50000-50009"], "backends": ["b"], "health": {"port": "21"}}, [21]),
    ({"listen": ["0.0.0.0:80"], "backends": ["b:1"], "protocol": "udp"}, []),  # a handshake is for TCP
])  # fmt: skip
def test_one_port_of_a_tcp_service_is_probed(service, ports):
    assert [target["port"] for target in probe_targets(fleet("a", [{**WEB, **service}]), "a")] == ports


def test_a_backend_is_probed_at_the_address_it_has_for_this_proxy():
    own = {"return_path_strategy": "address", "return_path_addresses": {"a": "198.18.0.121", "a2": "198.18.0.122"}}
    services = [{**WEB, "backends": ["b:8080"]}]
    for proxy, address in (("a", "198.18.0.121"), ("a2", "198.18.0.122")):
        seen = fleet(proxy, services, hostvars(b=own), proxies=["a", "a2"])
        assert [target["address"] for target in probe_targets(seen, proxy)] == [address]


def test_samples_are_for_udp_too_and_name_the_host_to_ask():
    dns = {**WEB, "name": "dns", "listen": ["[::]:53"], "protocol": "udp", "backends": ["b:53", "[2001:db8::99]:53"]}
    web = {**WEB, "listen": ["0.0.0.0:80"], "backends": ["c:8080"]}
    targets = probe_targets(fleet("a", [web, dns]), "a", samples=True)
    assert [(one["name"], one["protocol"], one["host"], one["address"]) for one in targets] == [
        ("web: c", "tcp", "c", "198.18.0.22"),
        ("dns: b", "udp", "b", "2001:db8::21"),
        ("dns: 2001:db8::99", "udp", "", "2001:db8::99"),
    ]
