# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of the forwarder as a whole: log, admin socket, metrics, source ports; and how they are read."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from ..._shared.endpoints import port_number, split_endpoint
from . import defaults
from .cross_checks import refuse_unusable
from .validation import Fields, show


@dataclass(frozen=True)
class PortRange:
    """The ports ``first`` to ``last``, both included."""

    first: int
    last: int


@dataclass(frozen=True)
class Admin:
    """The admin socket; ``socket`` None: in the runtime directory."""

    socket: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Metrics:
    """Where metrics and the status page are served; ``listen`` is ADDRESS:PORT, or None for nowhere."""

    listen: str | None = None

    @property
    def endpoint(self) -> tuple[str, int] | None:
        """The (address, port) to listen on, or None."""
        return _parse_endpoint(self.listen) if self.listen else None


@dataclass(frozen=True)
class Log:
    """The format of the log, and the lowest level that is written."""

    format: str = defaults.LOG_FORMATS[0]
    level: str = defaults.DEFAULT_LOG_LEVEL


def read_source_ports(document: Fields) -> PortRange | None:
    """Return the PortRange at ``source_ports``; None when there is none."""
    part = document.section("source_ports")
    if document.data is None or "source_ports" not in document.data:
        return None
    first = part.integer("first", "a source port", 1024, 65535)
    last = part.integer("last", "a source port", 1024, 65535)
    part.done()
    if first is None or last is None:
        return None
    if last - first + 1 < defaults.MIN_SOURCE_PORTS:
        part.error("", f"{first} to {last} is too few; use at least {defaults.MIN_SOURCE_PORTS} ports, first to last")
    return PortRange(first, last)


def read_admin(part: Fields) -> Admin:
    """Return the Admin of a section."""
    admin = Admin(socket=part.file("socket", defaults.MAX_SOCKET_PATH), group=part.name("group", default=None))
    part.done()
    return admin


def read_metrics(part: Fields) -> Metrics:
    """Return the Metrics of a section."""
    listen = part.text("listen", 100, None)
    part.done()
    if listen is not None:
        endpoint = _parse_endpoint(listen)
        if endpoint is None:
            part.error("listen", f"{show(listen)} is not ADDRESS:PORT; write 127.0.0.1:9100 or [::1]:9100")
            return Metrics()
        address = ipaddress.ip_address(endpoint[0])
        if not address.is_unspecified:
            refuse_unusable(part, "listen", address, "listen on")
    return Metrics(listen=listen)


def read_healthy_needs(document: Fields) -> str | None:
    """Return which services need a backend for this proxy to be healthy: ANY, EACH, or None."""
    needs = document.choice("healthy_needs", defaults.HEALTHY_NEEDS)
    return None if needs == defaults.NONE else needs


def read_virtual_addresses(document: Fields) -> dict[str, tuple[str, ...]] | None:
    """Return the addresses at ``virtual_addresses`` by name, in canonical form; None when there are none."""
    part = document.optional_section("virtual_addresses")
    found = {name: tuple(map(str, part.addresses(name, ()))) for name in part.data or ()} if part else {}
    return found or None


def read_log(part: Fields) -> Log:
    """Return the Log of a section."""
    log = Log(
        format=part.choice("format", defaults.LOG_FORMATS),
        level=part.choice("level", defaults.LOG_LEVELS, defaults.DEFAULT_LOG_LEVEL),
    )
    part.done()
    return log


def _parse_endpoint(text: str) -> tuple[str, int] | None:
    """Return (address, port) of "127.0.0.1:9100" or "[::1]:9100"; None for anything else."""
    try:
        host, port_text = split_endpoint(text)
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    port = port_number(port_text)
    if port is None or "%" in host or text.startswith("[") != (address.version == 6):
        return None
    return str(address), port
