# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of the configuration that are about the data path: values, their defaults, and how they are read.

Pure, as config.py, which puts them together.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE_PORTS = ("any", "keep")
SOURCE_FALLBACKS = ("refuse", "own")
AT_LIMIT = ("pause", "refuse")
PROXY_VERSIONS = ("v1", "v2")

DEFAULT_IDLE_TIMEOUT = 3600.0
DEFAULT_UDP_IDLE_TIMEOUT = 60.0  # as conntrack and most proxies forget a UDP flow that was answered after 1-2 minutes
DEFAULT_HALF_CLOSED_TIMEOUT = 300.0
DEFAULT_TCP_USER_TIMEOUT = 0.0
DEFAULT_KEEPALIVE = 60
DEFAULT_PROXY_TIMEOUT = 5.0

MAX_TIMEOUT = 7 * 86400
MAX_KEEPALIVE = 32767  # the kernel's own bound (MAX_TCP_KEEPIDLE in net/tcp.h)
MAX_CONNECTIONS = 10**7
MAX_RANGE = 1024  # ports of one listen entry: each is a socket in every worker slot
FEWEST_SOURCE_PORTS = 64
LOWEST_RATE = 1e-6  # connections a second, one in eleven days: what a client has left is counted in microseconds


@dataclass(frozen=True)
class PortRange:
    """Ports ``first`` to ``last``."""

    first: int
    last: int


@dataclass(frozen=True)
class Limits:
    """What a service takes; 0 means no limit. Clients are told apart by IPv4 address or IPv6 /64."""

    connections: int = 0
    connections_per_client: int = 0
    rate_per_client: float = 0.0  # new connections a second
    at_limit: str = "pause"


def source_ports(document):
    """Return the PortRange at ``source_ports``, None where there is none."""
    if document.data is None or "source_ports" not in document.data:
        document.section("source_ports")
        return None
    part = document.section("source_ports")
    first = part.integer("first", 1024, 65535, "a source port")
    last = part.integer("last", 1024, 65535, "a source port")
    part.done()
    if first is None or last is None:
        return None
    if last - first + 1 < FEWEST_SOURCE_PORTS:
        part.error("", f"{first} to {last} is too few; give at least {FEWEST_SOURCE_PORTS} ports, first to last")
    return PortRange(first, last)


def limits(service):
    """Return the Limits of a service."""
    part = service.section("limits")
    found = Limits(
        connections=part.integer("connections", 0, MAX_CONNECTIONS, "a number of connections", 0),
        connections_per_client=part.integer("connections_per_client", 0, MAX_CONNECTIONS, "a number of connections", 0),
        rate_per_client=part.number("rate_per_client", 0, 10**6, "a rate of connections a second", 0.0),
        at_limit=part.choice("at_limit", AT_LIMIT, Limits.at_limit),
    )
    part.done()
    if found.rate_per_client and found.rate_per_client < LOWEST_RATE:
        part.error(
            "rate_per_client", f"{found.rate_per_client:g} is too low; give at least {LOWEST_RATE:g}, or 0 for no limit"
        )
    return found


def service_options(part, protocol):
    """Return the keyword arguments of config.Service that are about its data path."""
    idle_timeout = DEFAULT_UDP_IDLE_TIMEOUT if protocol == "udp" else DEFAULT_IDLE_TIMEOUT
    return {
        "source_port": part.choice("source_port", SOURCE_PORTS, "any"),
        "source_fallback": part.choice("source_fallback", SOURCE_FALLBACKS, "refuse"),
        "idle_timeout": part.seconds("idle_timeout", 0, MAX_TIMEOUT, idle_timeout),
        "half_closed_timeout": part.seconds("half_closed_timeout", 0, MAX_TIMEOUT, DEFAULT_HALF_CLOSED_TIMEOUT),
        "tcp_user_timeout": part.seconds("tcp_user_timeout", 0, MAX_TIMEOUT, DEFAULT_TCP_USER_TIMEOUT),
        "keepalive": part.integer("keepalive", 0, MAX_KEEPALIVE, "a number of seconds", DEFAULT_KEEPALIVE),
        "accept_proxy": part.networks("accept_proxy"),
        "proxy_timeout": part.seconds("proxy_timeout", 0.1, 600, DEFAULT_PROXY_TIMEOUT),
        "limits": limits(part),
        "allow": part.networks("allow"),
        "deny": part.networks("deny"),
    }


def refuse_streams_only(part, service, backend_parts):
    """Refuse for a service of UDP what needs a connection, and a session without an end."""
    if service.idle_timeout == 0:
        part.error("idle_timeout", "0 would never end a session, and UDP has no other end; give more than 0")
    if service.health.port and service.health.request is None:
        part.error("health.port", "of a service of protocol udp nothing is asked without health.request; give it too")
    if service.accept_proxy:
        part.error("accept_proxy", "a service of protocol udp takes no PROXY headers; remove it")
    for backend_part, backend in zip(backend_parts, service.backends):
        if backend.send_proxy:
            backend_part.error("send_proxy", "a service of protocol udp sends no PROXY headers; remove it")
