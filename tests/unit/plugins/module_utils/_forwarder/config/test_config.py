# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The forwarder's config: defaults, round trip, and a sentence for everything that is wrong."""

from __future__ import annotations

import copy
import json

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import config


def minimal():
    return {
        "schema": 1,
        "proxy_id": 11,
        "services": [
            {
                "name": "web",
                "listen": [{"address": "0.0.0.0", "port": 80}],
                "backends": [{"name": "b", "ipv4": "198.18.0.21", "port": 8080}],
            }
        ],
    }


def full():
    return {
        "schema": 1,
        "proxy_id": 11,
        "drain_timeout": 45.0,
        "log": {"format": "logfmt", "level": "warning"},
        "source_ports": {"first": 32768, "last": 34531},
        "workers": 3,
        "admin": {"socket": "/run/l4proxy/other.sock", "group": "adm"},
        "metrics": {"listen": "127.0.0.1:9110"},
        "services": [
            {
                "name": "web",
                "protocol": "tcp",
                "listen": [{"address": "198.18.0.11", "port": 80}, {"address": "::", "port": 80}],
                "balance": "least_connections",
                "connect_timeout": 0.5,
                "connect_deadline": 3.0,
                "retries": 1,
                "backlog": 512,
                "source_port": "keep",
                "source_fallback": "own",
                "idle_timeout": 600.0,
                "half_closed_timeout": 30.0,
                "tcp_user_timeout": 20.0,
                "keepalive": 30,
                "accept_proxy": ["198.18.0.12/32", "2001:db8::12/128"],
                "proxy_timeout": 2.0,
                "limits": {
                    "connections": 1000,
                    "connections_per_client": 100,
                    "rate_per_client": 0.5,
                    "at_limit": "refuse",
                },
                "allow": ["0.0.0.0/0"],
                "deny": ["203.0.113.0/24"],
                "health": {
                    "enabled": True,
                    "interval": 5.0,
                    "timeout": 2.0,
                    "rise": 1,
                    "fall": 4,
                    "source": ["198.51.100.99"],
                },
                "on_all_down": "try_all",
                "slow_start": 10.0,
                "log": "errors",
                "backends": [
                    {
                        "name": "b",
                        "ipv4": "198.18.0.21",
                        "ipv6": "2001:db8::21",
                        "port": 8080,
                        "weight": 2,
                        "send_proxy": "v2",
                        "backup": False,
                        "max_connections": 100,
                    },
                    {"name": "c", "ipv6": "2001:db8::22", "port": 8080, "weight": 1, "backup": True},
                ],
            }
        ],
    }


def errors_of(data):
    with pytest.raises(config.ConfigError) as caught:
        config.load(data)
    assert str(caught.value) == "\n".join(caught.value.errors)
    return caught.value.errors


def test_the_defaults():
    loaded = config.load(minimal())
    service = loaded.services[0]
    assert (loaded.proxy_id, loaded.drain_timeout, loaded.log.format) == (11, 30.0, "json")
    assert (service.protocol, service.balance, service.retries, service.backlog) == ("tcp", "round_robin", 2, 4096)
    assert (service.connect_timeout, service.connect_deadline, service.backends[0].weight) == (1.0, 5.0, 1)
    assert (loaded.workers, loaded.metrics.endpoint, loaded.admin.socket) == (0, None, None)
    assert (service.on_all_down, service.slow_start, service.log) == ("refuse", 0.0, "all")


def test_the_health_source_follows_from_the_proxy_id():
    health = config.load(minimal()).services[0].health
    assert (health.enabled, health.interval, health.timeout, health.rise, health.fall) == (True, 2.0, 1.0, 2, 3)
    assert [health.source_of(family) for family in ("ipv4", "ipv6")] == ["198.51.100.11", "2001:db8:ffff::11"]
    declared = config.load(full()).services[0].health
    assert [declared.source_of(family) for family in ("ipv4", "ipv6")] == ["198.51.100.99", None]


@pytest.mark.parametrize(
    ("listen", "endpoint"), [("127.0.0.1:9110", ("127.0.0.1", 9110)), ("[::1]:80", ("::1", 80)), (None, None)]
)
def test_the_endpoint_of_the_metrics(listen, endpoint):
    data = {**minimal(), "metrics": {"listen": listen}}
    assert config.load(data).metrics.endpoint == endpoint


@pytest.mark.parametrize("data", [minimal(), full()])
def test_dump_is_the_inverse_of_load(data):
    loaded = config.load(data)
    document = config.dump(loaded)
    assert config.load(json.loads(json.dumps(document))) == loaded


def test_dump_of_a_full_document_is_that_document():
    assert config.dump(config.load(full())) == full()


def test_a_config_cannot_be_changed():
    with pytest.raises(AttributeError):
        config.load(minimal()).proxy_id = 12


def test_backends_are_chosen_by_the_clients_family():
    service = config.load(full()).services[0]
    assert [backend.name for backend in service.backends_of("ipv4")] == ["b"]
    assert [backend.name for backend in service.backends_of("ipv6")] == ["b", "c"]


def test_the_defaults_of_the_data_path():
    service = config.load(minimal()).services[0]
    assert (service.source_port, service.source_fallback) == ("any", "refuse")
    assert (service.idle_timeout, service.half_closed_timeout, service.tcp_user_timeout) == (3600.0, 300.0, 0.0)
    assert (service.keepalive, service.accept_proxy, service.proxy_timeout) == (60, (), 5.0)
    assert service.limits == config.Limits(0, 0, 0.0, "pause")
    assert (service.allow, service.deny, service.backends[0].send_proxy) == ((), (), None)
    assert config.load(minimal()).source_ports is None


def udp(**changes):
    """A document whose service is one of UDP, and that service."""
    data = minimal()
    data["services"][0].update(protocol="udp", **changes)
    return data, data["services"][0]


@pytest.mark.parametrize(("changes", "seconds"), [({}, 60.0), ({"idle_timeout": 5}, 5.0)])
def test_a_udp_session_is_soon_idle(changes, seconds):
    loaded = config.load(udp(**changes)[0])
    assert loaded.services[0].idle_timeout == seconds
    assert config.load(config.dump(loaded)) == loaded


def test_what_needs_a_connection_is_refused_for_udp():
    data, service = udp(idle_timeout=0, accept_proxy=["198.18.0.0/24"], health={"port": 7})
    service["backends"][0]["send_proxy"] = "v2"
    assert errors_of(data) == [
        "services[0].idle_timeout: 0 would never end a session, and UDP has no other end; give more than 0",
        "services[0].health.port: of a service of protocol udp nothing is asked without health.request; give it too",
        "services[0].accept_proxy: a service of protocol udp takes no PROXY headers; remove it",
        "services[0].backends[0].send_proxy: a service of protocol udp sends no PROXY headers; remove it",
    ]


def test_one_port_of_both_protocols():
    data, service = udp()
    data["services"].append({**copy.deepcopy(service), "name": "tcp", "protocol": "tcp"})
    assert len(config.load(data).services) == 2


def ranged(listen, backend):
    data = minimal()
    data["services"][0]["listen"] = [{"address": "198.18.0.11", "port": one} for one in listen]
    data["services"][0]["backends"][0]["port"] = backend
    return data


TEST_RANGES = [
    (["8000-8002"], 9000, [(8000, 9000), (8001, 9000), (8002, 9000)]),
    (["8000-8002"], "9000-9002", [(8000, 9000), (8001, 9001), (8002, 9002)]),
    (["8000-8001", "7000-7001"], "9000-9001", [(8000, 9000), (8001, 9001), (7000, 9000), (7001, 9001)]),
    ([80, "8000-8000", 81], 9000, [(80, 9000), (8000, 9000), (81, 9000)]),
    (["8000-8001", 8002], 9000, [(8000, 9000), (8001, 9000), (8002, 9000)]),
]


@pytest.mark.parametrize(("listen", "backend", "pairs"), TEST_RANGES)
def test_port_ranges(listen, backend, pairs):
    loaded = config.load(ranged(listen, backend))
    service = loaded.services[0]
    assert [(one.port, service.backends[0].port_of(one)) for one in service.listen] == pairs
    assert config.load(config.dump(loaded)) == loaded


def test_a_range_that_overlaps_is_refused_once():
    assert errors_of(ranged(["8000-8900", "8100-9000"], 80)) == [
        "services[0].listen[1]: 198.18.0.11:8100 overlaps 198.18.0.11:8100 of services[0].listen[0]"
        " (same port; a wildcard covers every address of its family)"
    ]


@pytest.mark.parametrize(
    ("listen", "backend", "said"),
    [(["8000-8002"], "9000-9001", "have 3"), ([80, "8000-8001"], "90-91", "have 1 and 2")],
)
def test_a_backend_with_another_number_of_ports_is_refused(listen, backend, said):
    (error,) = errors_of(ranged(listen, backend))
    assert error.startswith(f"services[0].backends[0].port: {backend} is 2 ports, and the listen addresses")
    assert said in error


def test_a_listener_without_backends_of_its_family_may_hide_its_clients():
    data = minimal()
    data["services"][0]["listen"].append({"address": "::", "port": 80})
    assert "or set source_fallback: own" in errors_of(data)[0]
    data["services"][0]["source_fallback"] = "own"
    assert len(config.load(data).services[0].listen) == 2


def test_addresses_become_canonical():
    data = minimal()
    data["services"][0]["listen"] = [{"address": "2001:DB8:0::0011", "port": 80}]
    data["services"][0]["backends"][0]["ipv6"] = "2001:db8:0:0::21"
    service = config.load(data).services[0]
    assert str(service.listen[0]) == "[2001:db8::11]:80"
    assert service.backends[0].ipv6 == "2001:db8::21"


SERVICE, LISTEN, BACKEND = ("services", 0), ("services", 0, "listen", 0), ("services", 0, "backends", 0)
MISSING = object()

TEST_REFUSED = [
    ((), "schema", 2, "schema: 2 is not the schema this version reads (1-1)"),
    ((), "schema", MISSING, "schema: is required"),
    ((), "proxy_id", MISSING, "proxy_id: is required"),
    ((), "proxy_id", 0, "proxy_id: 0 is not a proxy id (1-255)"),
    ((), "proxy_id", 256, "proxy_id: 256 is not a proxy id (1-255)"),
    ((), "proxy_id", True, "proxy_id: true is not a proxy id (1-255)"),
    ((), "proxy_id", "11", 'proxy_id: "11" is not a proxy id (1-255)'),
    ((), "drain_timeout", -1, "drain_timeout: -1 is not a duration in seconds (0-86400)"),
    ((), "drain_timeout", float("nan"), "drain_timeout: NaN is not a duration in seconds (0-86400)"),
    ((), "log", {"format": "xml"}, 'log.format: not in this version: "xml" (supported: json, logfmt)'),
    ((), "log", {"level": 1}, "log.level: not in this version: 1 (supported: debug, info, warning, error)"),
    ((), "log", {"colour": 1}, "log.colour: is not a known key (known here: format, level)"),
    ((), "workers", 65, "workers: 65 is not a number of workers (0-64)"),
    ((), "admin", {"socket": "admin.sock"}, 'admin.socket: "admin.sock" is not an absolute path of a file'),
    ((), "admin", {"socket": "/run/"}, 'admin.socket: "/run/" is not an absolute path of a file'),
    ((), "admin", {"socket": "/run/x\0y"}, r'admin.socket: "/run/x\u0000y" is not a path of 1-100 bytes (UTF-8, with'),
    ((), "admin", {"socket": "/run/x\ny"}, r'admin.socket: "/run/x\ny" is not a path of 1-100 bytes'),
    ((), "admin", {"socket": "/run/\udc80"}, r'admin.socket: "/run/\udc80" is not a path of 1-100 bytes'),
    ((), "admin", {"socket": f"/run/{'ä' * 48}"}, r'admin.socket: "/run/\u00e4'),
    ((), "admin", {"socket": f"/run/{'a' * 96}"}, "is not a text of 1-100 characters"),
    ((), "admin", {"socket": 1}, "admin.socket: 1 is not a text of 1-100 characters"),
    ((), "metrics", {"listen": "9100"}, 'metrics.listen: "9100" is not ADDRESS:PORT; write 127.0.0.1:9100'),
    ((), "metrics", {"listen": "::1:9100"}, 'metrics.listen: "::1:9100" is not ADDRESS:PORT'),
    ((), "metrics", {"listen": "127.0.0.1:0"}, 'metrics.listen: "127.0.0.1:0" is not ADDRESS:PORT'),
    ((), "metrics", {"listen": "127.0.0.1:²"}, r'metrics.listen: "127.0.0.1:\u00b2" is not ADDRESS:PORT'),
    ((), "metrics", {"listen": "127.0.0.1:٩١"}, "is not ADDRESS:PORT; write 127.0.0.1:9100 or [::1]:9100"),
    ((), "metrics", {"listen": "[2001:db8::1%eth0]:9100"}, "is not ADDRESS:PORT; write 127.0.0.1:9100 or [::1]:9100"),
    ((), "metrics", {"listen": "[fe80::1]:9100"}, "metrics.listen: fe80::1 is a link-local address; no service can"),
    ((), "metrics", {"listen": "[::ffff:127.0.0.1]:9100"}, "is IPv4 in IPv6 clothes: give 127.0.0.1"),
    (
        (),
        "metrics",
        {"listen": "127.0.0.1:80"},
        "metrics.listen: 127.0.0.1:80 overlaps 0.0.0.0:80 of services[0]; choose",
    ),
    ((), "drain_timeout", float("inf"), "drain_timeout: Infinity is not a duration in seconds (0-86400)"),
    ((), "source_ports", {"first": 10**5000}, "source_ports.first: a value too large to be shown is not a source port"),
    ((), "log", [], "log: [] is not a JSON object"),
    ((), "services", [], "services: is empty, at least one service is expected"),
    ((), "services", {}, "services: {} is not a list of services"),
    ((), "services", MISSING, "services: is required"),
    ((), "services", ["web"], 'services[0]: "web" is not a JSON object'),
    ((), "extra", 1, "extra: is not a known key (known here: admin, drain_timeout, log, metrics, proxy_id, "),
    (SERVICE, "name", MISSING, "services[0].name: is required"),
    (SERVICE, "name", "a b", 'services[0].name: "a b" is not a name ('),
    (SERVICE, "name", "", 'services[0].name: "" is not a name ('),
    (SERVICE, "protocol", "sctp", 'services[0].protocol: not in this version: "sctp" (supported: tcp, udp)'),
    (SERVICE, "balance", "fastest", 'services[0].balance: not in this version: "fastest" (supported: round_robin, '),
    (SERVICE, "health", {"enabled": 1}, "services[0].health.enabled: 1 is neither true nor false"),
    (SERVICE, "health", {"timeout": 3}, "services[0].health.timeout: 3 is above interval (2)"),
    (SERVICE, "health", {"port": 0}, "services[0].health.port: 0 is not a port (1-65535)"),
    (SERVICE, "health", {"port": "21-22"}, 'services[0].health.port: "21-22" is not a port (1-65535)'),
    (SERVICE, "health", {"fall": 0}, "services[0].health.fall: 0 is not a number of checks (1-100)"),
    (SERVICE, "health", {"source": "198.51.100.1"}, 'health.source: "198.51.100.1" is not a list of addresses'),
    (SERVICE, "health", {"source": [5]}, "services[0].health.source[0]: 5 is not an IP address"),
    (SERVICE, "health", {"source": ["2001:db8::1%2"]}, 'services[0].health.source[0]: "2001:db8::1%2" has a zone;'),
    (SERVICE, "health", {"request": "1€"}, r'services[0].health.request: "1\u20ac" has the character U+20AC; each'),
    (
        SERVICE,
        "health",
        {"expect": "\ud800"},
        r'health.expect: "\ud800" has the character U+D800; each character stands',
    ),
    (SERVICE, "health", {"source": ["127.0.0.1"]}, "health.source: 127.0.0.1 cannot be a client's address"),
    (SERVICE, "health", {"source": ["198.51.100.1", "198.51.100.2"]}, "source: has two addresses of one family"),
    (SERVICE, "on_all_down", "panic", 'on_all_down: not in this version: "panic" (supported: refuse, try_all)'),
    (SERVICE, "slow_start", -1, "services[0].slow_start: -1 is not a duration in seconds (0-3600)"),
    (SERVICE, "log", "some", 'services[0].log: not in this version: "some" (supported: all, errors, none)'),
    (SERVICE, "connect_timeout", 0, "services[0].connect_timeout: 0 is not a duration in seconds (0.1-600)"),
    (SERVICE, "connect_deadline", 0.5, "services[0].connect_deadline: 0.5 is below connect_timeout (1)"),
    (SERVICE, "retries", -1, "services[0].retries: -1 is not a number of retries (0-64)"),
    (SERVICE, "retries", 1.5, "services[0].retries: 1.5 is not a number of retries (0-64)"),
    (SERVICE, "backlog", 0, "services[0].backlog: 0 is not a backlog (1-65535)"),
    (SERVICE, "listen", [], "services[0].listen: is empty, at least one listen address is expected"),
    (SERVICE, "backends", [], "services[0].backends: is empty, at least one backend is expected"),
    (SERVICE, "wieght", 1, "services[0].wieght: is not a known key"),
    (SERVICE, "a: b", 1, 'services[0]."a: b": is not a known key'),
    (LISTEN, "port", 0, "services[0].listen[0].port: 0 is not a port (1-65535)"),
    (LISTEN, "port", MISSING, "services[0].listen[0].port: is required"),
    (LISTEN, "address", "localhost", 'services[0].listen[0].address: "localhost" is not an IP address'),
    (LISTEN, "address", "224.0.0.1", "services[0].listen[0].address: 224.0.0.1 is a multicast address; no service can"),
    (LISTEN, "address", "fe80::1%eth0", 'services[0].listen[0].address: "fe80::1%eth0" has a zone'),
    (LISTEN, "address", "::ffff:198.18.0.1", "is IPv4 in IPv6 clothes: give 198.18.0.1"),
    (LISTEN, "address", "::", "services[0].listen[0].address: :: is IPv6, but no backend of service web has ipv6"),
    ((), "source_ports", {"first": 40000, "last": 40010}, "source_ports: 40000 to 40010 is too few; give at least 64"),
    ((), "source_ports", {"first": 80, "last": 40010}, "source_ports.first: 80 is not a source port (1024-65535)"),
    (SERVICE, "source_port", "same", 'services[0].source_port: not in this version: "same" (supported: any, keep)'),
    (SERVICE, "idle_timeout", -1, "services[0].idle_timeout: -1 is not a duration in seconds (0-604800)"),
    (SERVICE, "keepalive", 1.5, "services[0].keepalive: 1.5 is not a number of seconds (0-32767)"),
    (SERVICE, "allow", "10.0.0.0/8", 'services[0].allow: "10.0.0.0/8" is not a list of networks'),
    (SERVICE, "deny", ["2001:db8::%eth0/64"], 'services[0].deny[0]: "2001:db8::%eth0/64" has a zone; link-local'),
    (SERVICE, "deny", ["10.0.0.0/٨"], "services[0].deny[0]: "),
    (SERVICE, "deny", ["10.0.0.1/8"], 'services[0].deny[0]: "10.0.0.1/8" has host bits set'),
    (
        SERVICE,
        "deny",
        ["::ffff:10.6.6.0/120"],
        "holds IPv4-mapped addresses only, and clients with one count as IPv4; give the IPv4 network",
    ),
    (SERVICE, "accept_proxy", ["a", 1], 'services[0].accept_proxy[0]: "a" is not a network like 192.0.2.0/24'),
    (SERVICE, "limits", {"connections": -1}, "services[0].limits.connections: -1 is not a number of connections (0-"),
    (SERVICE, "limits", {"rate_per_client": "1"}, 'services[0].limits.rate_per_client: "1" is not a rate of'),
    (SERVICE, "limits", {"rate_per_client": 1e-13}, "rate_per_client: 1e-13 is too low; give at least 1e-06, or 0"),
    (SERVICE, "limits", {"at_limit": "drop"}, "services[0].limits.at_limit: not in this version: "),
    (LISTEN, "port", True, "services[0].listen[0].port: true is not a port (1-65535) or a range"),
    (LISTEN, "port", "٨٠-٨١", "is not a port (1-65535) or a range"),
    (LISTEN, "port", "8010-8000", 'services[0].listen[0].port: "8010-8000" ends before it begins'),
    (LISTEN, "port", "1-65535", 'services[0].listen[0].port: "1-65535" is 65535 ports; a range has at most 1024'),
    (LISTEN, "port", "80", 'services[0].listen[0].port: "80" is not a port (1-65535) or a range like "8000-8010"'),
    (BACKEND, "send_proxy", "v3", 'services[0].backends[0].send_proxy: not in this version: "v3" (supported: v1, v2)'),
    (BACKEND, "port", 70000, "services[0].backends[0].port: 70000 is not a port (1-65535)"),
    (BACKEND, "weight", 0, "services[0].backends[0].weight: 0 is not a weight (1-65535)"),
    (BACKEND, "backup", "yes", 'services[0].backends[0].backup: "yes" is neither true nor false'),
    (BACKEND, "max_connections", 0, "services[0].backends[0].max_connections: 0 is not a number of connections"),
    (BACKEND, "name", MISSING, "services[0].backends[0].name: is required"),
    (BACKEND, "name", "b" + 700 * ":", 'services[0].backends[0].name: "b::::'),
    (BACKEND, "name", "b" + 80 * ":", "colons may be among them, 80 characters in all)"),
    (BACKEND, "name", 64 * "b", "is not a name (1-63 letters, digits"),
    (BACKEND, "ipv4", MISSING, "services[0].backends[0]: has no address; give ipv4, ipv6 or both"),
    (BACKEND, "ipv4", "2001:db8::1", 'services[0].backends[0].ipv4: "2001:db8::1" is not an IPv4 address'),
    (BACKEND, "ipv4", 1, "services[0].backends[0].ipv4: 1 is not an IPv4 address"),
    (BACKEND, "ipv4", "127.0.0.1", "services[0].backends[0].ipv4: 127.0.0.1 is a loopback address"),
    (BACKEND, "ipv4", "0.0.0.0", "services[0].backends[0].ipv4: 0.0.0.0 is the unspecified address"),
    (BACKEND, "ipv4", "255.255.255.255", "services[0].backends[0].ipv4: 255.255.255.255 is the broadcast address"),
    (BACKEND, "ipv6", "fe80::1", "services[0].backends[0].ipv6: fe80::1 is a link-local address"),
    (
        BACKEND,
        "host",
        "b",
        "services[0].backends[0].host: is not a known key (known here: backup, ipv4, ipv6, max_connections,",
    ),
]


@pytest.mark.parametrize(("where", "key", "value", "error"), TEST_REFUSED)
def test_a_bad_value_is_named_with_its_path(where, key, value, error):
    data = minimal()
    target = data
    for step in where:
        target = target[step]
    if value is MISSING:
        del target[key]
    else:
        target[key] = value
    assert any(error in line for line in errors_of(data)), errors_of(data)


@pytest.mark.parametrize("data", [None, [], "x", 1])
def test_a_document_that_is_no_object(data):
    assert errors_of(data)[0].endswith("is not a JSON object")


def test_a_bad_backend_is_one_error_and_not_a_family_without_backends_as_well():
    data = minimal()
    data["services"][0]["backends"].append({"name": "c", "ipv4": "198.18.0.22", "port": 70000})
    assert errors_of(data) == [
        'services[0].backends[1].port: 70000 is not a port (1-65535) or a range like "8000-8010"'
    ]


def test_all_errors_of_a_document_are_reported_together():
    data = minimal()
    data["proxy_id"] = 300
    data["services"][0]["listen"][0]["port"] = 0
    data["services"][0]["backends"][0]["weight"] = "two"
    assert len(errors_of(data)) == 3


def second_service(**changes):
    data = minimal()
    other = copy.deepcopy(data["services"][0])
    other.update(name="other", **changes)
    data["services"].append(other)
    return data


TEST_OVERLAPS = [
    ("0.0.0.0", 80, True),
    ("198.18.0.11", 80, True),
    ("0.0.0.0", 81, False),
]


@pytest.mark.parametrize(("address", "port", "overlaps"), TEST_OVERLAPS)
def test_two_services_on_one_listen_address(address, port, overlaps):
    data = second_service(listen=[{"address": address, "port": port}])
    if not overlaps:
        assert len(config.load(data).services) == 2
        return
    assert errors_of(data) == [
        f"services[1].listen[0]: {address}:80 overlaps 0.0.0.0:80 of services[0].listen[0]"
        " (same port; a wildcard covers every address of its family)"
    ]


def test_the_wildcards_of_both_families_do_not_overlap():
    data = minimal()
    data["services"][0]["listen"].append({"address": "::", "port": 80})
    data["services"][0]["backends"][0]["ipv6"] = "2001:db8::21"
    assert len(config.load(data).services[0].listen) == 2


def test_one_service_must_not_listen_twice_on_one_address():
    data = minimal()
    data["services"][0]["listen"] *= 2
    assert len(errors_of(data)) == 1


def test_duplicate_names():
    data = second_service(listen=[{"address": "0.0.0.0", "port": 81}])
    data["services"][1]["name"] = "web"
    data["services"][0]["backends"].append({"name": "b", "ipv4": "198.18.0.21", "port": 8080})
    assert errors_of(data) == [
        'services[0].backends[1].name: "b" is already the name of backends[0] of this service',
        "services[0].backends[1].ipv4: 198.18.0.21 port 8080 is already backends[0] of this service; use weight",
        'services[1].name: "web" is already the name of services[0]',
    ]


def test_parse_names_the_source_of_what_is_no_json():
    with pytest.raises(config.ConfigError, match=r"^the file: not a JSON document: .*line 1 column 2"):
        config.parse("{", "the file")
    with pytest.raises(config.ConfigError, match="key 'a' appears twice"):
        config.parse('{"a": 1, "a": 2}', "the file")
    with pytest.raises(config.ConfigError, match="not a JSON document"):
        config.parse(b"\xff\xfe\xff", "the file")
    with pytest.raises(config.ConfigError, match="not a JSON document"):
        config.parse("[" * 100000, "the file")


@pytest.mark.parametrize("depth", [10, 800, 900, 920, 930, 940, 950, 960])
def test_what_can_be_read_may_still_be_too_deep_to_be_spelled(depth):
    with pytest.raises(config.ConfigError):
        config.parse(f'{{"proxy_id": {"[" * depth}{"]" * depth}}}', "the file")


def test_load_file(tmp_path):
    path = tmp_path / "forwarder.json"
    with pytest.raises(config.ConfigError, match=r"forwarder.json: cannot be read: No such file or directory"):
        config.load_file(str(path))
    path.write_text(json.dumps(full()), encoding="utf-8")
    assert config.load_file(str(path)) == config.load(full())
