# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The PROXY protocol, versions 1 and 2: parses and builds the header in which a proxy names its client.

Pure. The source is haproxy/doc/proxy-protocol.txt (2020/03/05); numbers in brackets are its sections.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
from dataclasses import dataclass

V1, V2 = "v1", "v2"

_V1_START = b"PROXY "
_V1_LONGEST = 107  # bytes with CRLF [2.1]
_V2_START = b"\r\n\r\n\0\r\nQUIT\n"
_V2_FIXED = 16  # bytes before the addresses [2.2]

# A header may have up to 65,535 bytes of extensions. Real ones are short (the longest is a TLS certificate's name), and
# a longer one would let a sender fill our memory before it has named the client.
LONGEST = 4096  # bytes

_LOCAL, _PROXY = 0, 1
_ADDRESSES = {  # family and protocol byte [2.2]: (family, bytes of an address); UDP and unix sockets are not supported
    0x11: (socket.AF_INET, 4),
    0x21: (socket.AF_INET6, 16),
}
_PORT = re.compile(rb"(?:0|[1-9][0-9]{0,4})\Z")


class MalformedHeader(ValueError):
    """Not a PROXY header, or not an acceptable one; the message says why."""


@dataclass(frozen=True)
class Header:
    """A header of ``length`` bytes; the addresses are None where it has none (health checks of the other proxy)."""

    length: int
    source: str | None = None
    source_port: int = 0
    destination: str | None = None
    destination_port: int = 0


def parse(data):
    """Return the Header at the beginning of ``data`` (bytes), None where more bytes are needed; raise MalformedHeader.

    The result does not depend on how the bytes were split: if the complete bytes are refused, no part is accepted.
    """
    if data[: len(_V2_START)] == _V2_START[: len(data)]:
        return _parse_v2(data) if len(data) >= _V2_FIXED else None
    if data[: len(_V1_START)] == _V1_START[: len(data)]:
        return _parse_v1(data)
    raise MalformedHeader("it does not begin like version 1 or 2")


def _parse_v1(data):
    end = data.find(b"\r\n", 0, _V1_LONGEST)
    if end < 0:
        if len(data) >= _V1_LONGEST:
            raise MalformedHeader(f"no end of line within {_V1_LONGEST} bytes")
        return None
    length = end + 2
    words = data[len(_V1_START) : end].split(b" ")
    if words[0] == b"UNKNOWN":  # the rest of the line has no meaning [2.1]
        return Header(length)
    if words[0] not in (b"TCP4", b"TCP6") or len(words) != 5:
        raise MalformedHeader("version 1 line is not PROXY TCP4|TCP6 SOURCE DESTINATION PORT PORT")
    version = 4 if words[0] == b"TCP4" else 6
    source, destination = (_v1_address(word, version) for word in words[1:3])
    return Header(length, source, _v1_port(words[3]), destination, _v1_port(words[4]))


def _v1_address(word, version):
    try:
        address = ipaddress.ip_address(word.decode("ascii"))
    except ValueError:  # UnicodeDecodeError is one
        address = None
    if address is None or address.version != version or b"%" in word:
        raise MalformedHeader(f"version 1 address is not IPv{version}")
    return _unmapped(address)


def _v1_port(word):
    number = int(word) if _PORT.match(word) else 65536
    if number > 65535:
        raise MalformedHeader("version 1 port is not 0-65535")
    return number


def _parse_v2(data):
    version_command, kind, length = struct.unpack_from("!BBH", data, len(_V2_START))
    version, command = version_command >> 4, version_command & 15
    if version != 2 or command not in (_LOCAL, _PROXY):
        raise MalformedHeader(f"version {version} command {command} is not version 2 LOCAL or PROXY")
    total = _V2_FIXED + length
    if total > LONGEST:
        raise MalformedHeader(f"a header of {total} bytes is longer than the {LONGEST} that are accepted")
    family, size = _ADDRESSES.get(kind, (None, 0))
    if command == _PROXY and length < 2 * size + 4 * (size > 0):
        raise MalformedHeader("version 2 addresses are cut short")
    if len(data) < total:
        return None
    if command == _LOCAL or family is None:  # the addresses of the connection count [2.2]
        return Header(total)
    at = _V2_FIXED
    source = socket.inet_ntop(family, data[at : at + size])
    destination = socket.inet_ntop(family, data[at + size : at + 2 * size])
    source_port, destination_port = struct.unpack_from("!HH", data, at + 2 * size)
    source, destination = (_unmapped(ipaddress.ip_address(address)) for address in (source, destination))
    return Header(total, source, source_port, destination, destination_port)


def _unmapped(address):
    """Return an address in text form, an IPv4-mapped one (::ffff:192.0.2.1) as its IPv4 address.

    A proxy with one socket for both families names IPv4 clients like that. Other addresses that contain an IPv4 address
    (6to4, NAT64) are ordinary IPv6 addresses, to which replies can be sent.
    """
    return str(getattr(address, "ipv4_mapped", None) or address)


def build(version, source, source_port, destination, destination_port):
    """Return the header (bytes) that names these endpoints; addresses are in text form.

    A header has one family: if only one of the addresses is IPv4, it becomes IPv4-mapped.
    """
    four = ":" not in source and ":" not in destination
    if not four:
        source, destination = (address if ":" in address else f"::ffff:{address}" for address in (source, destination))
    if version == V1:
        protocol = "TCP4" if four else "TCP6"
        return f"PROXY {protocol} {source} {destination} {source_port} {destination_port}\r\n".encode("ascii")
    family, kind = (socket.AF_INET, 0x11) if four else (socket.AF_INET6, 0x21)
    body = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    body += struct.pack("!HH", source_port, destination_port)
    return _V2_START + struct.pack("!BBH", 2 << 4 | _PROXY, kind, len(body)) + body
