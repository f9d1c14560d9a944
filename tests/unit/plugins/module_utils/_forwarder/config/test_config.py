# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The forwarder's config: defaults, ranges of ports, reading and writing."""

from __future__ import annotations

import copy
import json

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Limits

from .config_data import full, minimal, ranged, udp


def test_a_minimal_document_has_the_documented_defaults():
    loaded = config.load(minimal())
    service = loaded.services[0]
    assert (loaded.proxy_id, loaded.drain_timeout, loaded.log.format, loaded.source_ports) == (11, None, "json", None)
    assert (loaded.stop_timeout, loaded.removal_timeout(service), loaded.most_drain_memory) == (30.0, 30.0, 1024)
    assert (service.protocol, service.balance, service.retries, service.backlog) == ("tcp", "round_robin", 2, 4096)
    assert (service.connect_timeout, service.connect_deadline, service.backends[0].weight) == (1.0, 5.0, 1)
    assert (loaded.workers, loaded.metrics.endpoint, loaded.admin.socket) == (0, None, None)
    assert (service.on_all_down, service.slow_start, service.log) == ("refuse", 0.0, "all")
    assert (service.source_port, service.source_fallback) == ("any", "refuse")
    assert (service.idle_timeout, service.half_closed_timeout, service.tcp_user_timeout) == (3600.0, 300.0, 0.0)
    assert (loaded.used_hash_table, service.hash_balance_factor) == ("ring", None)
    assert (service.keepalive, service.accept_proxy, service.proxy_timeout) == (60, (), 5.0)
    assert service.limits == Limits(0, 0, 0.0, "pause")
    assert (service.allow, service.deny, service.backends[0].send_proxy) == ((), (), None)


def test_the_health_source_follows_from_the_proxy_id():
    health = config.load(minimal()).services[0].health
    assert (health.enabled, health.interval, health.timeout, health.rise, health.fall) == (True, 2.0, 1.0, 2, 3)
    assert [health.source_of(family) for family in ("ipv4", "ipv6")] == ["198.51.100.11", "2001:db8:ffff::11"]
    declared = config.load(full()).services[0].health
    assert [declared.source_of(family) for family in ("ipv4", "ipv6")] == ["198.51.100.99", None]


def test_the_address_of_the_metrics_is_parsed():
    for listen, endpoint in (("127.0.0.1:9110", ("127.0.0.1", 9110)), ("[::1]:80", ("::1", 80)), (None, None)):
        assert config.load({**minimal(), "metrics": {"listen": listen}}).metrics.endpoint == endpoint


@pytest.mark.parametrize("data", [minimal(), full()])
def test_dump_is_the_inverse_of_load_and_a_config_cannot_be_changed(data):
    loaded = config.load(data)
    assert config.load(json.loads(json.dumps(config.dump(loaded)))) == loaded
    assert config.dump(config.load(full())) == full()
    with pytest.raises(AttributeError):
        loaded.proxy_id = 12


def test_the_document_of_defaults_has_no_key_that_version_0_1_0_refuses():
    """A rollback hands the document that dump() returns over to the earlier program."""
    document = config.dump(config.load(minimal()))
    (service,) = document["services"]
    keys = {*document, *service, *service["health"], *service["backends"][0]}
    later = {"deny_files", "never_ban"}
    later |= {"drain_timeout", "drain_memory", "priority", "on_down", "hash_table", "hash_balance_factor", "agent"}
    later |= {"datapath", "healthy_needs", "virtual_addresses"}
    assert keys & later == set()
    assert service["health"].keys() & {"max_out", "flap_pause", "flap_pause_max"} == set()


@pytest.mark.parametrize(("changes", "seconds"), [({}, 60.0), ({"idle_timeout": 5}, 5.0)])
def test_udp_has_a_shorter_default_idle_timeout_and_may_have_a_port_of_tcp(changes, seconds):
    data, service = udp(**changes)
    data["services"].append({**copy.deepcopy(service), "name": "tcp", "protocol": "tcp"})
    loaded = config.load(data)
    assert (len(loaded.services), loaded.services[0].idle_timeout) == (2, seconds)
    assert config.load(config.dump(loaded)) == loaded


@pytest.mark.parametrize(("listen", "backend", "pairs"), [
    (["8000-8002"], 9000, [(8000, 9000), (8001, 9000), (8002, 9000)]),
    (["8000-8002"], "9000-9002", [(8000, 9000), (8001, 9001), (8002, 9002)]),
    (["8000-8001", "7000-7001"], "9000-9001", [(8000, 9000), (8001, 9001), (7000, 9000), (7001, 9001)]),
    ([80, "8000-8000", 81], 9000, [(80, 9000), (8000, 9000), (81, 9000)]),
    (["8000-8001", 8002], 9000, [(8000, 9000), (8001, 9000), (8002, 9000)]),
])  # fmt: skip
def test_each_port_of_a_range_is_a_listener_with_its_backend_port(listen, backend, pairs):
    loaded = config.load(ranged(listen, backend))
    service = loaded.services[0]
    assert [(one.port, service.backends[0].port_of(one)) for one in service.listen] == pairs
    assert config.load(config.dump(loaded)) == loaded


def test_addresses_become_canonical():
    data = minimal()
    data["services"][0]["listen"] = [{"address": "2001:DB8:0::0011", "port": 80}]
    data["services"][0]["backends"][0]["ipv6"] = "2001:db8:0:0::21"
    service = config.load(data).services[0]
    assert str(service.listen[0]) == "[2001:db8::11]:80"
    assert service.backends[0].ipv6 == "2001:db8::21"


@pytest.mark.parametrize(("text", "error"), [
    ("{", r"^the file: not a JSON document: .*line 1 column 2"),
    ('{"a": 1, "a": 2}', "key 'a' appears twice"),
    (b"\xff\xfe\xff", "not a JSON document"),
    ("[" * 100000, "not a JSON document"),
])  # fmt: skip
def test_text_that_is_not_json_is_refused_with_its_source(text, error):
    with pytest.raises(config.ConfigError, match=error):
        config.parse(text, "the file")


@pytest.mark.parametrize("depth", [10, 800, 900, 920, 930, 940, 950, 960])
def test_deep_nesting_is_refused_and_never_overflows(depth):
    with pytest.raises(config.ConfigError):
        config.parse(f'{{"proxy_id": {"[" * depth}{"]" * depth}}}', "the file")


def test_a_file_is_read_and_an_unreadable_one_refused(tmp_path):
    path = tmp_path / "forwarder.json"
    with pytest.raises(config.ConfigError, match=r"forwarder.json: cannot be read: No such file or directory"):
        config.load_file(str(path))
    path.write_text(json.dumps(full()), encoding="utf-8")
    assert config.load_file(str(path)) == config.load(full())
