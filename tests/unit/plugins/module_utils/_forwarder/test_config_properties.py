# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Properties of every config: writing and reading keep it, and a bad value anywhere is refused with its path."""

from __future__ import annotations

import copy
import json
import os
import re
import socket
from contextlib import closing, suppress
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import listening
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admission import source_address
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends import health_checker, health_round
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends.service_runtime import ServiceRuntime
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import config, defaults
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop import sockets
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import generation, listeners
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp import timeouts
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp import timeouts as udp_timeouts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .config.config_data import full

PATH = re.compile(r'(?:document|[A-Za-z_]+(?:\[\d+\])?(?:\.(?:[^:"]|"(?:[^"\\]|\\.)*")*)?|"(?:[^"\\]|\\.)*"): .')

names = st.from_regex(r"[a-z][a-z0-9_.-]{0,20}", fullmatch=True)
seconds = st.floats(0.1, 600)
clients = st.ip_addresses().filter(lambda one: not getattr(one, "ipv4_mapped", None)).map(str)
ports = st.integers(1, 65535)
health = {"enabled": st.booleans(), "rise": st.integers(1, 100), "request": st.just("?"), "expect": st.just("!")}
health["agent"] = st.fixed_dictionaries({"port": st.integers(1, 65535)}, optional={"interval": st.floats(0.1, 3600)})


@st.composite
def services(draw, number):
    """A service; listeners of different services have different addresses."""
    families = draw(st.sampled_from([["ipv4"], ["ipv6"], ["ipv4", "ipv6"]]))
    listen = {"ipv4": f"198.18.0.{number + 1}", "ipv6": f"2001:db8::{number + 1:x}"}
    backends = []
    for place, name in enumerate(draw(st.lists(names, min_size=1, max_size=3, unique=True)), 1):
        addresses = {"ipv4": f"198.18.1.{place}", "ipv6": f"2001:db8:1::{place:x}"}
        backends.append({"name": name, "port": draw(ports), **{family: addresses[family] for family in families}})
        backends[-1] |= {"weight": draw(st.integers(1, defaults.WEIGHT.high)), "backup": draw(st.booleans())}
        if not backends[-1]["backup"]:
            backends[-1] |= draw(st.fixed_dictionaries({}, optional={"priority": st.integers(0, 255)}))
        backends[-1] |= {"enabled": draw(st.booleans())}
    optional = {
        "balance": st.sampled_from(defaults.BALANCES),
        "retries": st.integers(0, defaults.RETRIES.high),
        "backlog": st.integers(1, defaults.BACKLOG.high),
        "idle_timeout": seconds,
        "source_port": st.sampled_from(["any", "keep"]),
        "log_start": st.booleans(),
        "log_every": st.integers(0, 86400),
        "on_all_down": st.sampled_from(defaults.ON_ALL_DOWN),
        "limits": st.fixed_dictionaries({}, optional={"connections": st.integers(0, 1000), "rate_per_client": seconds}),
        "slow_start": seconds,
        "drain_timeout": seconds,
        "tcp_user_timeout": seconds,
        "protocol": st.sampled_from(defaults.PROTOCOLS),
        "allow": st.lists(clients, max_size=3),
        "health": st.fixed_dictionaries({}, optional=health),
    }
    listened = [{"address": listen[family], "port": draw(ports)} for family in families]
    more = draw(st.fixed_dictionaries({}, optional=optional))
    if more.get("balance") == "source_hash":
        more |= draw(st.fixed_dictionaries({}, optional={"hash_balance_factor": st.integers(101, 1000)}))
    return {"name": f"service{number}", "listen": listened, "backends": backends, **more}


whole = {
    "drain_timeout": seconds,
    "drain_memory": st.integers(1, 4096),
    "hash_table": st.sampled_from(defaults.HASH_TABLES),
    "healthy_needs": st.sampled_from(defaults.HEALTHY_NEEDS),
    "virtual_addresses": st.dictionaries(names, st.just(["198.18.0.100", "2001:db8::100"])),
    "workers": st.integers(0, 64),
    "admin": st.fixed_dictionaries({}, optional={"socket": st.just("/run/l4proxy/x.sock"), "group": names}),
    "metrics": st.fixed_dictionaries({}, optional={"listen": st.sampled_from(["127.0.0.1:9109", "[::1]:9109"])}),
}


@st.composite
def documents(draw):
    """A valid config."""
    listed = [draw(services(number)) for number in range(draw(st.integers(1, 3)))]
    more = draw(st.fixed_dictionaries({}, optional=whole))
    return {"schema": config.SCHEMA, "proxy_id": draw(st.integers(1, 255)), "services": listed, **more}


@given(documents())
def test_writing_and_reading_keep_a_config(document):
    loaded = config.load(document)
    dumped = config.dump(loaded)
    assert config.load(dumped) == loaded
    assert config.parse(json.dumps(dumped), "x") == loaded


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.ip_addresses().map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


def refused(document):
    """The errors of a document, empty if it is accepted; any other exception fails the test."""
    try:
        config.load(document)
    except config.ConfigError as error:
        return error.errors
    return []


@given(anything)
def test_any_other_json_is_refused(document):
    assert refused(document)


def places(value, path=()):
    """Every place in a document, as a path of keys and indexes."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


@given(documents(), anything, st.data())
def test_any_value_at_any_place_is_accepted_or_refused_with_a_path(document, value, data):
    *path, last = data.draw(st.sampled_from(list(places(document))))
    spoilt = copy.deepcopy(document)
    inner = spoilt
    for key in path:
        inner = inner[key]
    inner[last] = value
    errors = refused(spoilt)
    assert [error for error in errors if not PATH.match(error)] == []
    assert len(errors) == len(set(errors)), "nothing is said twice"


# What is of the right type and still no value: for a path, an address, a port, an exchange, a number.
spoilt_texts = st.one_of(
    st.text(st.sampled_from("/.:0123456789٣²%[]e\0\n€ä\ud800\udc80"), max_size=12),
    st.text(st.sampled_from("/.:٣²%[]\0\n€ä\ud800\udc80x"), max_size=120).map(lambda text: f"/run/{text}"),
    st.sampled_from(["127.0.0.1:²", "[::1%lo]:91", "fe80::1%lo", "2001:db8::1%1", "2001:db8::%1/64", "10.0.0.0/٨"]),
    st.sampled_from(["٨٠", "NaN", "1e999", "True", "null", "0x50", "1_0", " 80", "80 ", "+80", "-0"]),
)
NUMBERS = [5e-324, 1e-13, 1e-6, -0.0, 1e308, float("inf"), float("nan"), 2**31, 2**63, 2**64, 10**30, True, False]
spoilt_numbers = st.floats() | st.sampled_from(NUMBERS)


def consume(loaded):
    """Use a config as the processes of the forwarder do, without opening its sockets."""
    slots = min(listeners.slots_of(loaded), 4)
    with closing(shared_memory.Region(shared_memory.describe(loaded, slots))) as region:
        one = generation.Generation(1, loaded, {"path": "x", "sha256": ""}, None, slots, region)
        recorded = json.loads(json.dumps(one.record()).encode())
        assert config.load(recorded["config"]) == loaded
        for service in loaded.services:
            ports = source_address.SourcePorts(loaded.source_ports, True)
            runtime = ServiceRuntime.from_config(service, region, 0, ports, log=None)
            for number, (family, address) in enumerate([("ipv4", "203.0.113.9"), ("ipv6", "2001:db8:9::1")]):
                runtime.admit(address, 1e6 + number)
                if family in runtime.backends:
                    runtime.backends[family].next(address, (), 1e6)
            for _level, name, number in sockets.upstream_options(service.tcp_user_timeout):
                assert 0 < number < 2**31 or name == socket.TCP_QUICKACK
        assert timeouts.interval(loaded.services) >= timeouts.SHORTEST
        assert udp_timeouts.interval([service.idle_timeout for service in loaded.services]) > 0
        for one in health_checker.all_targets(loaded, region):
            if one.service.checked:
                with suppress(FileNotFoundError):  # ca_file
                    one.prepare()
                one.begin(1e6)  # its sockets are the fixture's
    assert len(json.dumps([str(one) for service in loaded.services for one in service.listen]).encode())
    for name in listening.names(loaded):
        path = listening.path_of(name)
        if path is not None:
            assert 0 < len(os.fsencode(path)) + len(".new") < 108
            assert b"\0" not in os.fsencode(path)
        else:
            assert loaded.metrics.endpoint


@pytest.fixture
def no_probes(monkeypatch):
    """The checker sends no probe; what it would send is bytes."""

    def probe(_address, port, source, *exchange):
        assert isinstance(port, int)
        assert source is None or "%" not in source
        assert all(isinstance(getattr(one, "outgoing", one), bytes) or callable(one) for one in exchange)
        return SimpleNamespace(poll=lambda: 0, close=lambda: None)

    for name in ("TcpProbe", "ExchangeProbe", "UdpProbe"):
        monkeypatch.setattr(health_round, name, probe)


def complete(protocol):
    """A config with every key."""
    document = full()
    (service,) = document["services"]
    service["listen"][1]["port"] = "80-80"
    service["health"].update(source=["198.51.100.99", "2001:db8:ffff::99"])
    if protocol == "udp":
        del service["health"]["tls"], service["health"]["http"]
        service["health"].update(request="?", expect_regex="!", expect_within=9)
    service.update(protocol=protocol, balance="source_hash", allow=["0.0.0.0/0", "::/0"])
    service["backends"] = [{**service["backends"][0], "name": "b:80"}]
    del service["backends"][0]["send_proxy"]
    if protocol == "udp":
        service["accept_proxy"] = []
    return document


@pytest.mark.usefixtures("no_probes")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(spoilt_texts, spoilt_numbers, anything), st.sampled_from(defaults.PROTOCOLS))
def test_every_accepted_value_can_be_used_by_all_that_read_it(value, protocol):
    consume(config.load(complete(protocol)))
    for *path, last in places(complete(protocol)):
        inner = document = complete(protocol)
        for key in path:
            inner = inner[key]
        inner[last] = value
        try:
            loaded = config.load(document)
        except config.ConfigError as error:
            "\n".join(error.errors).encode()  # what is printed has no half of a surrogate pair
        else:
            consume(loaded)
