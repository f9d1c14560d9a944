# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The health checks of a service: their options, and how they are read from the document."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..._shared.families import family_of
from . import defaults
from .health_agent import HealthAgent, read_agent
from .health_exchange import HealthHttp, HealthTls, read_exchange
from .validation import Fields


@dataclass(frozen=True)
class HealthCheck:
    """How the backends of a service are probed. What is sent and expected: health_exchange.py."""

    enabled: bool = True
    interval: float = defaults.HEALTH_INTERVAL.default
    timeout: float = defaults.HEALTH_TIMEOUT.default
    rise: int = defaults.HEALTH_RISE.default
    fall: int = defaults.HEALTH_FALL.default
    source: tuple[str, ...] = ()  # at most one of each family
    port: int | None = None  # None: the backend's own, the first of a range
    request: str | None = None
    expect: str | None = None
    expect_regex: str | None = None
    expect_within: int | None = None  # of expect_regex; None: the default
    tls: HealthTls | None = None
    http: HealthHttp | None = None
    agent: HealthAgent | None = None  # asked whether or not backends are probed
    max_out: int | None = None  # percent; version 0.1.0 does not know these keys, so they have no defaults
    flap_pause: float | None = None  # seconds; None and 0: no pauses
    flap_pause_max: float | None = None

    @property
    def agent_interval(self) -> float:
        """Seconds between two questions to an agent."""
        return self.agent.interval if self.agent and self.agent.interval else self.interval

    @property
    def asks_application(self) -> bool:
        """Whether a TCP check needs more than a handshake: an answer of the application, or TLS."""
        return any(one is not None for one in (self.request, self.expect, self.expect_regex, self.tls, self.http))

    @property
    def longest_pause(self) -> float:
        """Seconds that a backend that flaps stays out at most, and after which it has come back for good."""
        return self.flap_pause_max or max(defaults.FLAP_PAUSE_MAX.default, self.flap_pause or 0)

    def source_of(self, family: str) -> str | None:
        """Return the source of spoofed probes of ``family``; None when there are none."""
        return next((address for address in self.source if family_of(address) == family), None)


def read_health_check(part: Fields, proxy_id: int) -> HealthCheck:
    """Return the HealthCheck of a section; the default source follows from ``proxy_id``."""
    health = HealthCheck(
        enabled=part.boolean("enabled", True),
        interval=part.seconds("interval", *defaults.HEALTH_INTERVAL),
        timeout=part.seconds("timeout", *defaults.HEALTH_TIMEOUT),
        rise=part.integer("rise", "a number of checks", *defaults.HEALTH_RISE),
        fall=part.integer("fall", "a number of checks", *defaults.HEALTH_FALL),
        source=_read_sources(part, [text.format(proxy_id) for text in defaults.HEALTH_SOURCE.values()]),
        port=part.integer("port", "a port", *defaults.HEALTH_PORT),
        **read_exchange(part),
        agent=read_agent(part),
        max_out=part.integer("max_out", "a percentage", *defaults.MAX_OUT),
        flap_pause=part.seconds("flap_pause", *defaults.FLAP_PAUSE),
        flap_pause_max=part.seconds("flap_pause_max", *defaults.FLAP_PAUSE_MAX[:2], None),
    )
    part.done()
    if health.interval and health.timeout and health.timeout > health.interval:
        part.error(
            "timeout", f"{health.timeout:g} is longer than interval ({health.interval:g}); lower it, or raise interval"
        )
    if health.flap_pause_max and not health.flap_pause and not (part.data or {}).get("flap_pause"):
        part.error("flap_pause_max", "has no effect without flap_pause; set flap_pause too")
    elif health.flap_pause_max and health.flap_pause and health.flap_pause_max < health.flap_pause:
        part.error(
            "flap_pause_max", f"{health.flap_pause_max:g} is shorter than flap_pause ({health.flap_pause:g}); raise it"
        )
    return health


def _read_sources(part: Fields, default: Iterable[str]) -> tuple[str, ...]:
    addresses = part.addresses("source", default)
    families = [address.version for address in addresses]
    if len(set(families)) != len(families):
        part.error("source", "has two addresses of one family; use at most one IPv4 and one IPv6 address")
    for address in addresses:
        if address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local:
            part.error("source", f"{address} cannot be a client's address; use one that a client could have")
    return tuple(str(address) for address in addresses)
