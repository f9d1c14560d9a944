# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values that are right alone and wrong together are refused, at the key that has to change."""

from __future__ import annotations

import copy

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import config

from .config_data import errors_of, in_kernel, minimal, ranged, udp


def test_options_of_tcp_are_refused_for_udp():
    data, service = udp(idle_timeout=0, accept_proxy=["198.18.0.0/24"], health={"port": 7, "tls": {}, "http": {}})
    service["backends"][0]["send_proxy"] = "v2"
    assert errors_of(data) == [
        "services[0].idle_timeout: 0 would keep UDP sessions for ever; use a value above 0",
        "services[0].health.port: has no effect on a UDP service without health.request; set health.request too",
        "services[0].health.tls: a UDP service has no such check; use health.request, or remove it",
        "services[0].health.http: a UDP service has no such check; use health.request, or remove it",
        "services[0].accept_proxy: a UDP service cannot receive PROXY headers; remove it",
        "services[0].backends[0].send_proxy: a UDP service cannot send PROXY headers; remove it",
    ]


def test_a_backup_has_no_priority():
    data = minimal()
    data["services"][0]["backends"][0].update(backup=True, priority=0)
    expected = "has no effect on a backup, which comes after all priorities; remove one of the two"
    assert errors_of(data) == [f"services[0].backends[0].priority: {expected}"]


@pytest.mark.parametrize(("options", "remedy"), [
    ({"health": {"enabled": False}}, "health.enabled: true"),
    ({"protocol": "udp"}, "health.request"),
    ({"protocol": "udp", "health": {"enabled": False}}, "health.enabled: true"),
    ({}, None),
    ({"protocol": "udp", "health": {"request": "?"}}, None),
])  # fmt: skip
def test_sessions_of_a_backend_that_is_down_are_reset_only_where_health_checks_find_it_out(options, remedy):
    data = minimal()
    data["services"][0].update(on_down="reset", **options)
    if remedy is None:
        assert config.load(data).services[0].resets_on_down
        return
    sentence = "reset needs health checks, which find out that a backend is down; set"
    assert errors_of(data) == [f"services[0].on_down: {sentence} {remedy}"]
    data["services"][0]["on_down"] = "keep"
    assert not config.load(data).services[0].resets_on_down


REFUSED_IN_KERNEL = {
    "accept_proxy": ["198.18.0.0/15"], "balance": "least_connections", "retries": 0, "connect_timeout": 2,
    "connect_deadline": 4, "idle_timeout": 61, "half_closed_timeout": 10, "keepalive": 30, "tcp_user_timeout": 9,
    "source_fallback": "own", "slow_start": 3, "health.agent": {"port": 9707}, "log_start": True, "log_every": 60,
    "listen[0]": [{"address": "198.18.0.11", "port": "80-82"}], "listen[1]": [
        {"address": "198.18.0.11", "port": 80}, {"address": "198.18.0.12", "port": 80}],
    "backends[0].send_proxy": "v2", "backends[0].max_connections": 9,
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [
    *REFUSED_IN_KERNEL.items(), ("listen[0]", [{"address": "0.0.0.0", "port": 80}]), ("hash_balance_factor", 150),
])  # fmt: skip
def test_what_the_kernel_cannot_do_is_refused_with_its_key(key, value):
    data = in_kernel()
    service = data["services"][0]
    service["balance"] = "source_hash"
    section, _dot, inner = key.rpartition(".")
    place = {"": service, "health": service.setdefault("health", {}), "backends[0]": service["backends"][0]}[section]
    place[inner.partition("[")[0]] = value
    (error,) = errors_of(data)
    assert error.startswith(f"services[0].{key}: ")
    assert error.endswith("datapath: forwarder")
    service["datapath"] = "forwarder"
    assert config.load(data).services[0].datapath is None


@pytest.mark.parametrize("options", [
    {}, {"keepalive": 0, "source_port": "keep", "on_down": "reset", "log": "errors", "health": {"max_out": 50}},
    {"protocol": "udp"}, {"balance": "random", "limits": {"connections": 5}, "allow": ["198.18.0.0/15"]},
])  # fmt: skip
def test_what_the_kernel_can_do_is_accepted(options):
    data = in_kernel()
    data["services"][0].update(options)
    loaded = config.load(data)
    assert loaded.services[0].in_kernel
    assert config.load(config.dump(loaded)) == loaded


def test_expect_regex_needs_a_request_over_udp():
    assert errors_of(udp(health={"expect_regex": "a"})[0]) == [
        "services[0].health.expect_regex: a UDP server answers only health.request; set health.request too"
    ]


SAME_PORT = " (same port; a wildcard covers every address of its family)"


def test_overlapping_ranges_are_one_error():
    (error,) = errors_of(ranged(["8000-8900", "8100-9000"], 80))
    overlap = "services[0].listen[1]: 198.18.0.11:8100 overlaps 198.18.0.11:8100 of services[0].listen[0]"
    assert error == f"{overlap}{SAME_PORT}"


@pytest.mark.parametrize(("listen", "backend", "said"), [
    (["8000-8002"], "9000-9001", "have 3"),
    ([80, "8000-8001"], "90-91", "have 1 and 2"),
])  # fmt: skip
def test_a_backend_range_of_another_length_is_refused(listen, backend, said):
    (error,) = errors_of(ranged(listen, backend))
    assert error.startswith(f"services[0].backends[0].port: {backend} is 2 ports, but the listen addresses")
    assert said in error


def test_a_listener_needs_a_backend_of_its_family_unless_clients_may_be_hidden():
    data = minimal()
    data["services"][0]["listen"].append({"address": "::", "port": 80})
    assert "or set source_fallback: own" in errors_of(data)[0]
    data["services"][0]["source_fallback"] = "own"
    assert len(config.load(data).services[0].listen) == 2


def second_service(**changes):
    data = minimal()
    other = copy.deepcopy(data["services"][0])
    other.update(name="other", **changes)
    data["services"].append(other)
    return data


TEST_OVERLAPS = [("0.0.0.0", 80, True), ("198.18.0.11", 80, True), ("0.0.0.0", 81, False)]


@pytest.mark.parametrize(("address", "port", "overlaps"), TEST_OVERLAPS)
def test_two_services_cannot_share_a_listen_address(address, port, overlaps):
    data = second_service(listen=[{"address": address, "port": port}])
    error = f"services[1].listen[0]: {address}:80 overlaps 0.0.0.0:80 of services[0].listen[0]{SAME_PORT}"
    assert (errors_of(data) == [error]) if overlaps else (len(config.load(data).services) == 2)


def test_the_wildcards_of_both_families_do_not_overlap_but_one_address_listed_twice_does():
    data = minimal()
    data["services"][0]["listen"].append({"address": "::", "port": 80})
    data["services"][0]["backends"][0]["ipv6"] = "2001:db8::21"
    assert len(config.load(data).services[0].listen) == 2
    data["services"][0]["listen"] = minimal()["services"][0]["listen"] * 2
    assert len(errors_of(data)) == 1


def test_duplicate_names_and_addresses_are_refused():
    data = second_service(listen=[{"address": "0.0.0.0", "port": 81}])
    data["services"][1]["name"] = "web"
    data["services"][0]["backends"].append({"name": "b", "ipv4": "198.18.0.21", "port": 8080})
    assert errors_of(data) == [
        'services[0].backends[1].name: "b" is already the name of backends[0] of this service; choose another',
        "services[0].backends[1].ipv4: 198.18.0.21 port 8080 is already backends[0] of this service;"
        " to give it more connections, raise its weight",
        'services[1].name: "web" is already the name of services[0]; choose another',
    ]
