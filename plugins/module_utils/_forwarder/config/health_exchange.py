# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a health check sends and expects: the keys request, expect, expect_regex, expect_within, tls and http."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Any

from ..._shared.endpoints import port_number, split_endpoint
from . import defaults
from .validation import Fields, show

_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?\Z")
_PATH = re.compile(r"/[!-~]*\Z")  # printable ASCII: a space or a line break would end the request line
_STATUS = re.compile(r"([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?\Z")


@dataclass(frozen=True)
class HealthTls:
    """The TLS handshake of a health check; the certificate is verified only with ``verify``."""

    server_name: str | None = None  # for SNI and verification; may be an IP address, which SNI cannot have
    verify: bool = False
    ca_file: str | None = None  # None: the certificate authorities of the system


@dataclass(frozen=True)
class HealthHttp:
    """The HTTP request of a health check, and the status codes that are good."""

    method: str = defaults.HTTP_METHODS[0]
    path: str = "/"
    host: str | None = None  # None: health.tls.server_name, else the backend's address and port
    expect_status: tuple[str, ...] = defaults.HTTP_STATUS

    def statuses(self) -> set[int]:
        """Return the status codes that are good."""
        bounds = [(one[:3], one[-3:]) for one in self.expect_status]
        return {code for first, last in bounds for code in range(int(first), int(last) + 1)}


def read_tls(part: Fields | None) -> HealthTls | None:
    """Return the HealthTls of a section, None without one."""
    if part is None:
        return None
    tls = HealthTls(
        server_name=part.text("server_name", defaults.MAX_HOST, None),
        verify=part.boolean("verify", False),
        ca_file=part.file("ca_file", defaults.MAX_PATH),
    )
    part.done()
    name = tls.server_name
    if name is not None and not _is_name(name):
        part.error("server_name", f"{show(name)} is neither a host name (ASCII) nor an IP address")
    if tls.verify and name is None:
        part.error("server_name", "is required with verify: true; give the name that the certificate must have")
    if tls.ca_file is not None and tls.verify is False:
        part.error("ca_file", "has no effect without verify: true; set it, or remove ca_file")
    return tls


def read_http(part: Fields | None) -> HealthHttp | None:
    """Return the HealthHttp of a section, None without one."""
    if part is None:
        return None
    http = HealthHttp(
        method=part.choice("method", defaults.HTTP_METHODS),
        path=part.text("path", defaults.MAX_EXCHANGE, "/"),
        host=part.text("host", defaults.MAX_HOST, None),
        expect_status=tuple(_read_statuses(part)),
    )
    part.done()
    if http.path is not None and not _PATH.match(http.path):
        part.error("path", f"{show(http.path)} is not a path: it begins with / and has printable ASCII, no spaces")
    if http.host is not None and not _is_host(http.host):
        part.error("host", f"{show(http.host)} is no host name (ASCII) or IP address, with or without a port")
    return http


def _is_name(text: str) -> bool:
    """Whether a text is a host name (ASCII) or an IP address without a zone."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return bool(_HOST_NAME.match(text))
    return "%" not in text


def _is_host(text: str) -> bool:
    """Whether a text is NAME, ADDRESS, NAME:PORT, [IPV6] or [IPV6]:PORT."""
    try:
        name, port = split_endpoint(text)
    except ValueError:
        return False
    return _is_name(name) and (not port or port_number(port) is not None)


def _read_statuses(part: Fields) -> list[str]:
    statuses = []
    for index, item in enumerate(part.items("expect_status", defaults.HTTP_STATUS, "status codes")):
        text = item if isinstance(item, str) else str(item) if item in range(100, 600) else ""
        match = _STATUS.match(text)
        if match is None:
            what = 'a status code (100-599) or a range like "200-399"'
            part.error(f"expect_status[{index}]", f"{show(item)} is not {what}")
        elif match[2] and match[2] < match[1]:
            part.error(f"expect_status[{index}]", f"{show(item)} ends before it begins")
        else:
            statuses.append(text)
    if not statuses:
        part.error("expect_status", "names no status code")
    return statuses


def read_exchange(part: Fields) -> dict[str, Any]:
    """Return the keys of this file by name; refuse those that contradict each other."""
    exchange = {
        "request": part.octets("request", defaults.MAX_EXCHANGE),
        "expect": part.octets("expect", defaults.MAX_EXCHANGE),
        "expect_regex": part.octets("expect_regex", defaults.MAX_EXCHANGE),
        "expect_within": part.integer("expect_within", "a number of bytes", *defaults.EXPECT_WITHIN[:2], None),
        "tls": read_tls(part.optional_section("tls")),
        "http": read_http(part.optional_section("http")),
    }
    if exchange["http"] is not None:
        for key in ("request", "expect", "expect_regex"):
            if exchange[key] is not None:
                part.error(key, "cannot be given together with health.http, which sends a request of its own")
    if exchange["expect_regex"] is not None:
        if exchange["expect"] is not None:
            part.error("expect", "cannot be given together with health.expect_regex; remove one of them")
        try:
            re.compile(exchange["expect_regex"].encode("latin-1"))
        except (re.error, OverflowError, RecursionError, ValueError) as error:
            part.error("expect_regex", f"{show(exchange['expect_regex'])} is not a regular expression: {error}")
    elif exchange["expect_within"] is not None:
        part.error("expect_within", "has no effect without health.expect_regex; remove it")
    return exchange
