# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Config documents that the tests of this folder change, and the errors of a document."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import config


def minimal():
    listen, backends = {"address": "0.0.0.0", "port": 80}, {"name": "b", "ipv4": "198.18.0.21", "port": 8080}
    return {"schema": 1, "proxy_id": 11, "services": [{"name": "web", "listen": [listen], "backends": [backends]}]}


def full():
    service = {
        "name": "web", "protocol": "tcp", "log": "errors", "log_start": True, "log_every": 300,
        "backlog": 512,
        "listen": [{"address": "198.18.0.11", "port": 80}, {"address": "::", "port": 80}],
        "balance": "source_hash", "hash_balance_factor": 150, "on_all_down": "try_all", "on_down": "reset",
        "slow_start": 10.0,
        "connect_timeout": 0.5, "connect_deadline": 3.0, "retries": 1, "source_port": "keep", "source_fallback": "own",
        "idle_timeout": 600.0, "half_closed_timeout": 30.0, "tcp_user_timeout": 20.0, "keepalive": 30,
        "drain_timeout": 90.0,
        "accept_proxy": ["198.18.0.12/32", "2001:db8::12/128"], "proxy_timeout": 2.0,
        "limits": {"connections": 1000, "connections_per_client": 100, "rate_per_client": 0.5, "at_limit": "refuse"},
        "allow": ["0.0.0.0/0"], "deny": ["203.0.113.0/24"],
        "health": {"enabled": True, "interval": 5.0, "timeout": 2.0, "rise": 1, "fall": 4, "source": ["198.51.100.99"],
                   "tls": {"server_name": "b.example", "verify": True, "ca_file": "/etc/ssl/ca.pem"},
                   "http": {"method": "HEAD", "path": "/healthz", "host": "b.example:8443", "expect_status": ["204"]},
                   "agent": {"port": 9707, "interval": 0.5},
                   "max_out": 50, "flap_pause": 10.0, "flap_pause_max": 60.0},
        "backends": [
            {"name": "b", "ipv4": "198.18.0.21", "ipv6": "2001:db8::21", "port": 8080, "weight": 2,
             "send_proxy": "v2", "backup": False, "max_connections": 100},
            {"name": "c", "ipv6": "2001:db8::22", "port": 8080, "weight": 1, "backup": True, "enabled": False},
            {"name": "d", "ipv6": "2001:db8::23", "port": 8080, "weight": 1, "backup": False, "priority": 255},
        ],
    }  # fmt: skip
    return {
        "schema": 1, "proxy_id": 11, "drain_timeout": 45.0, "drain_memory": 512, "workers": 3, "services": [service],
        "hash_table": "maglev", "healthy_needs": "each",
        "virtual_addresses": {"web": ["198.18.0.100", "2001:db8::100"], "announced": ["203.0.113.9"]},
        "log": {"format": "logfmt", "level": "warning"}, "source_ports": {"first": 32768, "last": 34531},
        "admin": {"socket": "/run/l4proxy/other.sock", "group": "adm"}, "metrics": {"listen": "127.0.0.1:9110"},
    }  # fmt: skip


def in_kernel():
    """A document whose service is forwarded by the kernel."""
    data = minimal()
    data["services"][0]["datapath"] = "kernel"
    data["services"][0]["listen"][0]["address"] = "198.18.0.11"
    return data


def errors_of(data):
    with pytest.raises(config.ConfigError) as caught:
        config.load(data)
    assert str(caught.value) == "\n".join(caught.value.errors)
    return caught.value.errors


def udp(**changes):
    """A document whose service is one of UDP, and that service."""
    data = minimal()
    data["services"][0].update(protocol="udp", **changes)
    return data, data["services"][0]


def ranged(listen, backend):
    data = minimal()
    data["services"][0]["listen"] = [{"address": "198.18.0.11", "port": one} for one in listen]
    data["services"][0]["backends"][0]["port"] = backend
    return data
