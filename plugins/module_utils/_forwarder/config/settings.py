# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sections of the config that are not about forwarding itself: health checks, admin socket, metrics, log.

Pure, like config.py, which puts them together. Durations are seconds.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from .cross_checks import refuse_unusable
from .validation import IPV4, IPV6, show

LOG_FORMATS = ("json", "logfmt")
LOG_LEVELS = ("debug", "info", "warning", "error")

# What a spoofed question comes from: documentation ranges (RFC 5737, RFC 3849) that no client has, one for each proxy.
HEALTH_SOURCE = {IPV4: "198.51.100.{0}", IPV6: "2001:db8:ffff::{0}"}

DEFAULT_INTERVAL = 2.0
DEFAULT_TIMEOUT = 1.0
DEFAULT_RISE = 2
DEFAULT_FALL = 3
MAX_EXCHANGE = 512  # characters of request and expect: a question, not a transfer
LONGEST_SOCKET = 100  # bytes: sun_path has 108 (unix(7)), and the socket is made under another name first

_PORT = re.compile("[0-9]{1,5}")


@dataclass(frozen=True)
class Health:
    """How the backends of a service are asked. ``request`` and ``expect`` are of UDP services only."""

    enabled: bool = True
    interval: float = DEFAULT_INTERVAL
    timeout: float = DEFAULT_TIMEOUT
    rise: int = DEFAULT_RISE
    fall: int = DEFAULT_FALL
    source: tuple[str, ...] = ()  # at most one of each family
    port: int | None = None  # None: the backend's own, the first of a range
    request: str | None = None
    expect: str | None = None

    def source_of(self, family):
        """Return the address the spoofed question of ``family`` comes from, None when it is not asked."""
        for address in self.source:
            if (":" in address) == (family == IPV6):
                return address
        return None


@dataclass(frozen=True)
class Admin:
    """The admin socket. ``socket`` None: in the runtime directory."""

    socket: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Metrics:
    """Where metrics and the status page are served; ``listen`` is ADDRESS:PORT, None: nowhere."""

    listen: str | None = None

    @property
    def endpoint(self):
        """The (address, port) to listen on, or None."""
        return split_endpoint(self.listen) if self.listen else None


@dataclass(frozen=True)
class Log:
    """How the log is written."""

    format: str = "json"
    level: str = "info"


def health(part, proxy_id):
    """Return the Health of the Fields ``part``; the default source follows from ``proxy_id``."""
    default = tuple(text.format(proxy_id) for text in HEALTH_SOURCE.values())
    found = Health(
        enabled=part.boolean("enabled", True),
        interval=part.seconds("interval", 0.1, 3600, DEFAULT_INTERVAL),
        timeout=part.seconds("timeout", 0.05, 600, DEFAULT_TIMEOUT),
        rise=part.integer("rise", 1, 100, "a number of checks", DEFAULT_RISE),
        fall=part.integer("fall", 1, 100, "a number of checks", DEFAULT_FALL),
        source=_sources(part, default),
        port=part.integer("port", 1, 65535, "a port", None),
        request=part.octets("request", MAX_EXCHANGE),
        expect=part.octets("expect", MAX_EXCHANGE),
    )
    part.done()
    if found.interval and found.timeout and found.timeout > found.interval:
        part.error("timeout", f"{found.timeout:g} is above interval ({found.interval:g})")
    return found


def _sources(part, default):
    addresses = part.addresses("source", default)
    families = [address.version for address in addresses]
    if len(set(families)) != len(families):
        part.error("source", "has two addresses of one family; give one for IPv4 and one for IPv6")
    for address in addresses:
        if address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local:
            part.error("source", f"{address} cannot be a client's address; give one that clients could come from")
    return tuple(str(address) for address in addresses)


def admin(part):
    """Return the Admin of the Fields ``part``."""
    found = Admin(socket=part.file("socket", LONGEST_SOCKET), group=part.name("group", default=None))
    part.done()
    return found


def metrics(part):
    """Return the Metrics of the Fields ``part``."""
    listen = part.text("listen", 100, None)
    part.done()
    if listen is not None:
        endpoint = split_endpoint(listen)
        if endpoint is None:
            part.error("listen", f"{show(listen)} is not ADDRESS:PORT; write 127.0.0.1:9100 or [::1]:9100")
            return Metrics()
        address = ipaddress.ip_address(endpoint[0])
        if not address.is_unspecified:
            refuse_unusable(part, "listen", address, "listen on")
    return Metrics(listen=listen)


def log(part):
    """Return the Log of the Fields ``part``."""
    found = Log(format=part.choice("format", LOG_FORMATS, "json"), level=part.choice("level", LOG_LEVELS, "info"))
    part.done()
    return found


def split_endpoint(text):
    """Return (address, port) of "127.0.0.1:9100" or "[::1]:9100", None when it is neither."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if not colon or not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535 or bracketed != (address.version == 6):
        return None
    if "%" in host:  # a zone
        return None
    return str(address), int(port)
