# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each bad value is refused with its path, and all of a document together."""

from __future__ import annotations

import pytest

from .config_data import errors_of, minimal

SERVICE, LISTEN, BACKEND = ("services", 0), ("services", 0, "listen", 0), ("services", 0, "backends", 0)
MISSING = object()

TEST_REFUSED = [
    ((), "schema", 2, "schema: 2 is not the schema of this version (1)"),
    ((), "schema", MISSING, "schema: is required"),
    ((), "proxy_id", MISSING, "proxy_id: is required"),
    ((), "proxy_id", 0, "proxy_id: 0 is not a proxy id (1-255)"),
    ((), "proxy_id", 256, "proxy_id: 256 is not a proxy id (1-255)"),
    ((), "proxy_id", True, "proxy_id: true is not a proxy id (1-255)"),
    ((), "proxy_id", "11", 'proxy_id: "11" is not a proxy id (1-255)'),
    ((), "drain_timeout", -1, "drain_timeout: -1 is not a duration in seconds (0-86400)"),
    ((), "drain_timeout", float("nan"), "drain_timeout: NaN is not a duration in seconds (0-86400)"),
    ((), "deny_files", ["/f", "bans", 7], 'deny_files[1]: "bans" is not an absolute path of a file'),
    ((), "deny_files", ["/f", "/f"], 'deny_files: has "/f" twice'),
    ((), "deny_files", [f"/{number}" for number in range(33)], "deny_files: has 33 files; the limit is 32"),
    ((), "never_ban", ["10.0.0.1/8"], 'never_ban[0]: "10.0.0.1/8" has host bits set'),
    ((), "drain_memory", 0, "drain_memory: 0 is not a number of MiB (1-1048576)"),
    ((), "hash_table", "map", 'hash_table: "map" is not supported; use one of ring, maglev'),
    ((), "log", {"format": "xml"}, 'log.format: "xml" is not supported; use one of json, logfmt'),
    ((), "log", {"level": 1}, "log.level: 1 is not supported; use one of debug, info, warning, error"),
    ((), "log", {"colour": 1}, "log.colour: is not a known key; the known ones are format, level"),
    ((), "workers", 65, "workers: 65 is not a number of workers (0-64)"),
    ((), "admin", {"socket": "admin.sock"}, 'admin.socket: "admin.sock" is not an absolute path of a file'),
    ((), "admin", {"socket": "/run/"}, 'admin.socket: "/run/" is not an absolute path of a file'),
    ((), "admin", {"socket": "/run/x\0y"}, r'admin.socket: "/run/x\u0000y" is not a path of 1-100 bytes (UTF-8, with'),
    ((), "admin", {"socket": "/run/x\ny"}, r'admin.socket: "/run/x\ny" is not a path of 1-100 bytes'),
    ((), "admin", {"socket": "/run/\udc80"}, r'admin.socket: "/run/\udc80" is not a path of 1-100 bytes'),
    ((), "admin", {"socket": f"/run/{'ä' * 48}"}, r'admin.socket: "/run/\u00e4'),
    ((), "admin", {"socket": f"/run/{'a' * 96}"}, "is not a string of 1-100 characters"),
    ((), "admin", {"socket": 1}, "admin.socket: 1 is not a string of 1-100 characters"),
    ((), "metrics", {"listen": "9100"}, 'metrics.listen: "9100" is not ADDRESS:PORT; write 127.0.0.1:9100'),
    ((), "metrics", {"listen": "::1:9100"}, 'metrics.listen: "::1:9100" is not ADDRESS:PORT'),
    ((), "metrics", {"listen": "127.0.0.1:0"}, 'metrics.listen: "127.0.0.1:0" is not ADDRESS:PORT'),
    ((), "metrics", {"listen": "127.0.0.1:²"}, r'metrics.listen: "127.0.0.1:\u00b2" is not ADDRESS:PORT'),
    ((), "metrics", {"listen": "127.0.0.1:٩١"}, "is not ADDRESS:PORT; write 127.0.0.1:9100 or [::1]:9100"),
    ((), "metrics", {"listen": "[2001:db8::1%eth0]:9100"}, "is not ADDRESS:PORT; write 127.0.0.1:9100 or [::1]:9100"),
    ((), "metrics", {"listen": "[fe80::1]:9100"}, "metrics.listen: fe80::1 is a link-local address; a service cannot"),
    ((), "metrics", {"listen": "[::ffff:127.0.0.1]:9100"}, "is an IPv4-mapped IPv6 address; use 127.0.0.1"),
    ((), "metrics", {"listen": "127.0.0.1:80"},
     "metrics.listen: 127.0.0.1:80 overlaps 0.0.0.0:80 of services[0]; choose"),
    ((), "drain_timeout", float("inf"), "drain_timeout: Infinity is not a duration in seconds (0-86400)"),
    ((), "source_ports", {"first": 10**5000}, "source_ports.first: a value too large to be shown is not a source port"),
    ((), "log", [], "log: [] is not a JSON object"),
    ((), "services", [], "services: is empty; at least one service is required"),
    ((), "services", {}, "services: {} is not a list of services"),
    ((), "services", MISSING, "services: is required"),
    ((), "services", ["web"], 'services[0]: "web" is not a JSON object'),
    ((), "extra", 1,
     "extra: is not a known key; the known ones are admin, deny_files, drain_memory, drain_timeout, hash_table, "),
    ((), "healthy_needs", "all", "healthy_needs: \"all\" is not supported; use one of none, any, each"),
    ((), "virtual_addresses", {"web": ["x"]}, "virtual_addresses.web[0]: \"x\" is not an IP address"),
    ((), "virtual_addresses", ["x"], "virtual_addresses: [\"x\"] is not a JSON object"),
    (SERVICE, "name", MISSING, "services[0].name: is required"),
    (SERVICE, "name", "a b", 'services[0].name: "a b" is not a name ('),
    (SERVICE, "name", "", 'services[0].name: "" is not a name ('),
    (SERVICE, "protocol", "sctp", 'services[0].protocol: "sctp" is not supported; use one of tcp, udp'),
    (SERVICE, "balance", "fastest", 'services[0].balance: "fastest" is not supported; use one of round_robin, '),
    (SERVICE, "hash_balance_factor", 100, "hash_balance_factor: 100 is not a percentage (101-1000)"),
    (SERVICE, "hash_balance_factor", 150,
     "services[0].hash_balance_factor: has no effect with balance: round_robin; remove it, or use source_hash"),
    (SERVICE, "health", {"enabled": 1}, "services[0].health.enabled: 1 is neither true nor false"),
    (SERVICE, "health", {"timeout": 3}, "services[0].health.timeout: 3 is longer than interval (2)"),
    (SERVICE, "health", {"port": 0}, "services[0].health.port: 0 is not a port (1-65535)"),
    (SERVICE, "health", {"port": "21-22"}, 'services[0].health.port: "21-22" is not a port (1-65535)'),
    (SERVICE, "health", {"agent": {}}, "services[0].health.agent.port: is required"),
    (SERVICE, "health", {"agent": 9707}, "services[0].health.agent: 9707 is not a JSON object"),
    (SERVICE, "health", {"agent": {"port": 1, "interval": 0}}, "health.agent.interval: 0 is not a duration in seconds"),
    (SERVICE, "health", {"agent": {"port": 1, "send": "x"}}, "health.agent.send: is not a known key; the known ones"),
    (SERVICE, "health", {"max_out": 101}, "services[0].health.max_out: 101 is not a percentage (0-100)"),
    (SERVICE, "health", {"flap_pause": -1}, "health.flap_pause: -1 is not a duration in seconds (0-86400)"),
    (SERVICE, "health", {"flap_pause": -1, "flap_pause_max": 5}, "health.flap_pause: -1 is not a duration"),
    (SERVICE, "health", {"flap_pause_max": 60}, "health.flap_pause_max: has no effect without flap_pause; set flap_"),
    (SERVICE, "health", {"flap_pause": 60, "flap_pause_max": 9}, "flap_pause_max: 9 is shorter than flap_pause (60);"),
    (SERVICE, "health", {"enabled": False, "max_out": 50},
     "services[0].health.max_out: has no effect without health checks; set health.enabled: true, or remove it"),
    (SERVICE, "health", {"enabled": False, "flap_pause": 5}, "health.flap_pause: has no effect without health checks;"),
    (SERVICE, "health", {"fall": 0}, "services[0].health.fall: 0 is not a number of checks (1-100)"),
    (SERVICE, "health", {"source": "198.51.100.1"}, 'health.source: "198.51.100.1" is not a list of addresses'),
    (SERVICE, "health", {"source": [5]}, "services[0].health.source[0]: 5 is not an IP address"),
    (SERVICE, "health", {"source": ["2001:db8::1%2"]}, 'services[0].health.source[0]: "2001:db8::1%2" has a zone;'),
    (SERVICE, "health", {"request": "1€"}, r'services[0].health.request: "1\u20ac" has the character U+20AC; each'),
    (SERVICE, "health", {"expect": "\ud800"},
     r'health.expect: "\ud800" has the character U+D800; each character stands'),
    (SERVICE, "health", {"expect": "a", "expect_regex": "b"},
     "health.expect: cannot be given together with health.expect_regex; remove one of them"),
    (SERVICE, "health", {"expect_regex": "(a"},
     'health.expect_regex: "(a" is not a regular expression: missing ), unterminated subpattern at position 0'),
    (SERVICE, "health", {"expect_within": 10}, "health.expect_within: has no effect without health.expect_regex"),
    (SERVICE, "health", {"expect_regex": "a", "expect_within": 65537},
     "health.expect_within: 65537 is not a number of bytes (1-65536)"),
    (SERVICE, "health", {"http": {}, "expect": "a"}, "health.expect: cannot be given together with health.http"),
    (SERVICE, "health", {"http": []}, "services[0].health.http: [] is not a JSON object"),
    (SERVICE, "health", {"http": {"method": "POST"}}, 'http.method: "POST" is not supported; use one of'),
    (SERVICE, "health", {"http": {"path": "healthz"}}, 'http.path: "healthz" is not a path: it begins with /'),
    (SERVICE, "health", {"http": {"path": "/a b"}}, 'http.path: "/a b" is not a path'),
    (SERVICE, "health", {"http": {"path": "/\r\nX: y"}}, r'http.path: "/\r\nX: y" is not a path'),
    (SERVICE, "health", {"http": {"path": "/ä"}}, r'http.path: "/\u00e4" is not a path'),
    (SERVICE, "health", {"http": {"host": "a\nb"}}, r'http.host: "a\nb" is no host name (ASCII) or IP address'),
    (SERVICE, "health", {"http": {"host": "a:0"}}, 'http.host: "a:0" is no host name'),
    (SERVICE, "health", {"http": {"host": "[::1"}}, 'http.host: "[::1" is no host name'),
    (SERVICE, "health", {"http": {"expect_status": 200}}, "http.expect_status: 200 is not a list of status codes"),
    (SERVICE, "health", {"http": {"expect_status": []}}, "http.expect_status: names no status code"),
    (SERVICE, "health", {"http": {"expect_status": [99]}}, "http.expect_status[0]: 99 is not a status code (100-599)"),
    (SERVICE, "health", {"http": {"expect_status": ["299-200"]}}, '"299-200" ends before it begins'),
    (SERVICE, "health", {"tls": {"server_name": "a b"}}, 'tls.server_name: "a b" is neither a host name (ASCII) nor'),
    (SERVICE, "health", {"tls": {"verify": True}}, "health.tls.server_name: is required with verify: true; give the"),
    (SERVICE, "health", {"tls": {"ca_file": "/ca"}}, "health.tls.ca_file: has no effect without verify: true; set it"),
    (SERVICE, "health", {"tls": {"verify": True, "server_name": "a", "ca_file": "ca"}}, "is not an absolute path of a"),
    (SERVICE, "health", {"source": ["127.0.0.1"]}, "health.source: 127.0.0.1 cannot be a client's address"),
    (SERVICE, "health", {"source": ["198.51.100.1", "198.51.100.2"]}, "source: has two addresses of one family"),
    (SERVICE, "on_all_down", "panic", 'on_all_down: "panic" is not supported; use one of refuse, try_all'),
    (SERVICE, "on_down", "close", 'services[0].on_down: "close" is not supported; use one of keep, reset'),
    (SERVICE, "slow_start", -1, "services[0].slow_start: -1 is not a duration in seconds (0-3600)"),
    (SERVICE, "log", "some", 'services[0].log: "some" is not supported; use one of all, errors, none'),
    (SERVICE, "connect_timeout", 0, "services[0].connect_timeout: 0 is not a duration in seconds (0.1-600)"),
    (SERVICE, "connect_deadline", 0.5, "services[0].connect_deadline: 0.5 is shorter than connect_timeout (1)"),
    (SERVICE, "retries", -1, "services[0].retries: -1 is not a number of retries (0-64)"),
    (SERVICE, "retries", 1.5, "services[0].retries: 1.5 is not a number of retries (0-64)"),
    (SERVICE, "backlog", 0, "services[0].backlog: 0 is not a backlog (1-65535)"),
    (SERVICE, "listen", [], "services[0].listen: is empty; at least one listen address is required"),
    (SERVICE, "backends", [], "services[0].backends: is empty; at least one backend is required"),
    (SERVICE, "wieght", 1, "services[0].wieght: is not a known key"),
    (SERVICE, "a: b", 1, 'services[0]."a: b": is not a known key'),
    (LISTEN, "port", 0, "services[0].listen[0].port: 0 is not a port (1-65535)"),
    (LISTEN, "port", MISSING, "services[0].listen[0].port: is required"),
    (LISTEN, "address", "localhost", 'services[0].listen[0].address: "localhost" is not an IP address'),
    (LISTEN, "address", "224.0.0.1", "services[0].listen[0].address: 224.0.0.1 is a multicast address; a service"),
    (LISTEN, "address", "fe80::1%eth0", 'services[0].listen[0].address: "fe80::1%eth0" has a zone'),
    (LISTEN, "address", "::ffff:198.18.0.1", "is an IPv4-mapped IPv6 address; use 198.18.0.1"),
    (LISTEN, "address", "::", "services[0].listen[0].address: :: is IPv6, but no backend of service web has an IPv6"),
    ((), "source_ports", {"first": 40000, "last": 40010}, "source_ports: 40000 to 40010 is too few; use at least 64"),
    ((), "source_ports", {"first": 80, "last": 40010}, "source_ports.first: 80 is not a source port (1024-65535)"),
    (SERVICE, "source_port", "same", 'services[0].source_port: "same" is not supported; use one of any, keep'),
    (SERVICE, "idle_timeout", -1, "services[0].idle_timeout: -1 is not a duration in seconds (0-604800)"),
    (SERVICE, "keepalive", 1.5, "services[0].keepalive: 1.5 is not a number of seconds (0-32767)"),
    (SERVICE, "allow", "10.0.0.0/8", 'services[0].allow: "10.0.0.0/8" is not a list of networks'),
    (SERVICE, "deny", ["2001:db8::%eth0/64"], 'services[0].deny[0]: "2001:db8::%eth0/64" has a zone; link-local'),
    (SERVICE, "deny", ["10.0.0.0/٨"], "services[0].deny[0]: "),
    (SERVICE, "deny", ["10.0.0.1/8"], 'services[0].deny[0]: "10.0.0.1/8" has host bits set'),
    (SERVICE, "deny", ["::ffff:10.6.6.0/120"],
     "has only IPv4-mapped addresses, but such clients count as IPv4; use the IPv4 network"),
    (SERVICE, "accept_proxy", ["a", 1], 'services[0].accept_proxy[0]: "a" is not a network like 192.0.2.0/24'),
    (SERVICE, "limits", {"connections": -1}, "services[0].limits.connections: -1 is not a number of connections (0-"),
    (SERVICE, "limits", {"rate_per_client": "1"}, 'services[0].limits.rate_per_client: "1" is not a rate of'),
    (SERVICE, "limits", {"rate_per_client": 1e-13}, "rate_per_client: 1e-13 is too low; use at least 1e-06, or 0"),
    (SERVICE, "limits", {"at_limit": "drop"},
     'services[0].limits.at_limit: "drop" is not supported; use one of pause, refuse'),
    (LISTEN, "port", True, "services[0].listen[0].port: true is not a port (1-65535) or a range"),
    (LISTEN, "port", "٨٠-٨١", "is not a port (1-65535) or a range"),
    (LISTEN, "port", "8010-8000", 'services[0].listen[0].port: "8010-8000" ends before it begins'),
    (LISTEN, "port", "1-65535", 'services[0].listen[0].port: "1-65535" is 65535 ports; a range has at most 1024'),
    (LISTEN, "port", "80", 'services[0].listen[0].port: "80" is not a port (1-65535) or a range like "8000-8010"'),
    (BACKEND, "send_proxy", "v3", 'services[0].backends[0].send_proxy: "v3" is not supported; use one of v1, v2'),
    (BACKEND, "port", 70000, "services[0].backends[0].port: 70000 is not a port (1-65535)"),
    (BACKEND, "weight", 0, "services[0].backends[0].weight: 0 is not a weight (1-65535)"),
    (SERVICE, "log_start", "yes", 'services[0].log_start: "yes" is neither true nor false'),
    (SERVICE, "log_every", 0.5, "services[0].log_every: 0.5 is not a number of seconds (0-86400)"),
    (BACKEND, "enabled", 0, "services[0].backends[0].enabled: 0 is neither true nor false"),
    (BACKEND, "backup", "yes", 'services[0].backends[0].backup: "yes" is neither true nor false'),
    (BACKEND, "priority", 256, "services[0].backends[0].priority: 256 is not a priority (0-255)"),
    (BACKEND, "max_connections", 0, "services[0].backends[0].max_connections: 0 is not a number of connections"),
    (BACKEND, "name", MISSING, "services[0].backends[0].name: is required"),
    (BACKEND, "name", "b" + 700 * ":", 'services[0].backends[0].name: "b::::'),
    (BACKEND, "name", "b" + 80 * ":", "colons are allowed too, 80 characters in all)"),
    (BACKEND, "name", 64 * "b", "is not a name (1-63 letters, digits"),
    (BACKEND, "ipv4", MISSING, "services[0].backends[0]: has no address; set ipv4, ipv6 or both"),
    (BACKEND, "ipv4", "2001:db8::1", 'services[0].backends[0].ipv4: "2001:db8::1" is not an IPv4 address'),
    (BACKEND, "ipv4", 1, "services[0].backends[0].ipv4: 1 is not an IPv4 address"),
    (BACKEND, "ipv4", "127.0.0.1", "services[0].backends[0].ipv4: 127.0.0.1 is a loopback address"),
    (BACKEND, "ipv4", "0.0.0.0", "services[0].backends[0].ipv4: 0.0.0.0 is the unspecified address"),
    (BACKEND, "ipv4", "255.255.255.255", "services[0].backends[0].ipv4: 255.255.255.255 is the broadcast address"),
    (BACKEND, "ipv6", "fe80::1", "services[0].backends[0].ipv6: fe80::1 is a link-local address"),
    (BACKEND, "host", "b",
     "services[0].backends[0].host: is not a known key; the known ones are backup, enabled, ipv4, ipv6, "),
]  # fmt: skip


@pytest.mark.parametrize(("where", "key", "value", "error"), TEST_REFUSED)
def test_a_bad_value_is_refused_with_its_path(where, key, value, error):
    data = minimal()
    target = data
    for step in where:
        target = target[step]
    if value is MISSING:
        del target[key]
    else:
        target[key] = value
    assert any(error in line for line in errors_of(data)), errors_of(data)


def test_all_errors_of_a_document_are_reported_together_and_one_that_is_not_an_object_is_refused():
    data = minimal()
    data["proxy_id"] = 300
    data["services"][0]["listen"][0]["port"] = 0
    data["services"][0]["backends"][0]["weight"] = "two"
    assert len(errors_of(data)) == 3
    for data in (None, [], "x", 1):
        assert errors_of(data)[0].endswith("is not a JSON object")


def test_a_bad_backend_is_one_error_and_not_also_a_missing_family():
    data = minimal()
    data["services"][0]["backends"].append({"name": "c", "ipv4": "198.18.0.22", "port": 70000})
    (error,) = errors_of(data)
    assert error == 'services[0].backends[1].port: 70000 is not a port (1-65535) or a range like "8000-8010"'
