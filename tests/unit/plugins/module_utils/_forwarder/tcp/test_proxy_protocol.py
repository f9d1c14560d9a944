# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PROXY headers: examples of the specification, all that is refused, and properties that hold for any bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp import proxy_protocol
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp.proxy_protocol import (
    Header,
    MalformedHeader,
)
from hypothesis import given
from hypothesis import strategies as st

START = b"\r\n\r\n\0\r\nQUIT\n"
V4 = bytes([203, 0, 113, 7, 198, 18, 0, 11, 0x1F, 0x90, 0, 80])  # 203.0.113.7:8080 to 198.18.0.11:80
V6 = b"\x20\x01\x0d\xb8" + bytes(11) + b"\x01" + b"\x20\x01\x0d\xb8" + bytes(11) + b"\x02" + b"\x1f\x90\x00\x50"


def v2(command, kind, body, length=None):
    return START + bytes([command, kind]) + (len(body) if length is None else length).to_bytes(2, "big") + body


TEST_ACCEPTED = [
    (b"PROXY TCP4 203.0.113.7 198.18.0.11 8080 80\r\n", Header(44, "203.0.113.7", 8080, "198.18.0.11", 80)),
    (b"PROXY TCP6 2001:DB8:0::1 2001:db8::2 8080 80\r\n", Header(46, "2001:db8::1", 8080, "2001:db8::2", 80)),
    (b"PROXY TCP4 203.0.113.7 198.18.0.11 0 65535\r\n", Header(44, "203.0.113.7", 0, "198.18.0.11", 65535)),
    (b"PROXY UNKNOWN\r\n", Header(15)),
    (b"PROXY UNKNOWN ffff:f...f:ffff whatever 1 2 3\r\n", Header(46)),
    (v2(0x21, 0x11, V4), Header(28, "203.0.113.7", 8080, "198.18.0.11", 80)),
    (v2(0x21, 0x21, V6), Header(52, "2001:db8::1", 8080, "2001:db8::2", 80)),
    (v2(0x21, 0x11, V4 + b"\x04\0\x01x"), Header(32, "203.0.113.7", 8080, "198.18.0.11", 80)),
    (v2(0x20, 0x00, b""), Header(16)),  # LOCAL: a health check of the other proxy
    (v2(0x20, 0x11, V4), Header(28)),
    (v2(0x21, 0x00, b"anything"), Header(24)),  # AF_UNSPEC
    (v2(0x21, 0x31, bytes(216)), Header(232)),  # a unix socket
    (v2(0x21, 0x12, V4), Header(28)),  # UDP over TCP
]


@pytest.mark.parametrize(("data", "header"), TEST_ACCEPTED)
@pytest.mark.parametrize("rest", [b"", b"GET / HTTP/1.0\r\n\r\n", b"\r\n"])
def test_a_header_is_accepted_once_complete_whatever_follows_it(data, header, rest):
    assert proxy_protocol.parse(data + rest) == header
    assert header.length == len(data)
    assert [cut for cut in range(len(data)) if proxy_protocol.parse(data[:cut]) is not None] == []


TEST_REFUSED = [
    (b"GET / HTTP/1.0\r\n", "does not begin like version 1 or 2"),
    (b"\0", "does not begin like version 1 or 2"),
    (b"PROXY  TCP4 203.0.113.7 198.18.0.11 8080 80\r\n", "is not PROXY TCP4|TCP6"),
    (b"PROXY TCP5 203.0.113.7 198.18.0.11 8080 80\r\n", "is not PROXY TCP4|TCP6"),
    (b"PROXY TCP4 203.0.113.7 198.18.0.11 8080\r\n", "is not PROXY TCP4|TCP6"),
    (b"PROXY TCP4 203.0.113.7 198.18.0.11 8080 80 \r\n", "is not PROXY TCP4|TCP6"),
    (b"PROXY TCP4 2001:db8::1 198.18.0.11 8080 80\r\n", "address is not IPv4"),
    (b"PROXY TCP4 203.0.113.007 198.18.0.11 8080 80\r\n", "address is not IPv4"),
    (b"PROXY TCP6 203.0.113.7 198.18.0.11 8080 80\r\n", "address is not IPv6"),
    (b"PROXY TCP6 fe80::1%eth0 fe80::2 8080 80\r\n", "address is not IPv6"),
    (b"PROXY TCP6 \xff\xfe fe80::2 8080 80\r\n", "address is not IPv6"),
    (b"PROXY TCP4 203.0.113.7 198.18.0.11 65536 80\r\n", "port is not 0-65535"),
    (b"PROXY TCP4 203.0.113.7 198.18.0.11 080 80\r\n", "port is not 0-65535"),
    (b"PROXY TCP4 203.0.113.7 198.18.0.11 -1 80\r\n", "port is not 0-65535"),
    (b"PROXY TCP4 203.0.113.7 198.18.0.11 " + b"8" * 5000 + b" 80\r\n", "no end of line within 107 bytes"),
    (b"PROXY " + b"x" * 101, "no end of line within 107 bytes"),
    (v2(0x11, 0x11, V4), "version 1 command 1 is not"),
    (v2(0x2F, 0x11, V4), "version 2 command 15 is not"),
    (v2(0x21, 0x11, V4[:11]), "cut short"),
    (v2(0x21, 0x21, V4), "cut short"),
    (v2(0x21, 0x11, b"", length=65535), "a header of 65551 bytes is longer than the 4096"),
]


@pytest.mark.parametrize(("data", "reason"), TEST_REFUSED)
def test_a_malformed_header_is_refused_with_the_reason(data, reason):
    with pytest.raises(MalformedHeader, match=reason.replace("|", r"\|")):
        proxy_protocol.parse(data)


def outcome(data):
    """The result of parse(), or MalformedHeader."""
    try:
        return proxy_protocol.parse(data)
    except MalformedHeader:
        return MalformedHeader


# Bytes that get past the first comparison, and any others.
texts = [b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY UNKNOWN"]
beginnings = st.sampled_from([*texts, START, START + b"\x21\x11", START + b"\x21\x21\0\x24", START + b" "])
any_bytes = st.builds(lambda start, rest: start + rest, beginnings, st.binary(max_size=200))


@given(any_bytes, st.data())
def test_the_outcome_does_not_depend_on_how_the_bytes_are_split(data, cuts):
    whole, first = outcome(data), None
    for end in [*sorted(cuts.draw(st.lists(st.integers(0, len(data)), max_size=8))), len(data)]:
        first = outcome(data[:end])
        if first is not None:
            break
    assert first == whole


ports = st.integers(0, 65535)
# A mapped address would be read as IPv4.
ipv6 = st.ip_addresses(v=6).filter(lambda one: one.ipv4_mapped is None).map(str)
endpoints = st.one_of(
    st.tuples(st.ip_addresses(v=4).map(str), ports, st.ip_addresses(v=4).map(str), ports),
    st.tuples(ipv6, ports, ipv6, ports),
    st.tuples(st.ip_addresses(v=4).map(str), ports, ipv6, ports),
)


@given(st.sampled_from([proxy_protocol.V1, proxy_protocol.V2]), endpoints, st.binary(max_size=20))
def test_parse_is_the_inverse_of_build(version, names, rest):
    header = proxy_protocol.build(version, *names)
    assert proxy_protocol.parse(header + rest) == Header(len(header), *names)


@pytest.mark.parametrize(("sent", "read"), [
    ("::ffff:10.6.6.6", "10.6.6.6"),
    ("::ffff:a06:606", "10.6.6.6"),
    ("2002:a06:606::1", "2002:a06:606::1"),  # 6to4
    ("64:ff9b::a06:606", "64:ff9b::a06:606"),  # NAT64
    ("::a06:606", "::a06:606"),
])  # fmt: skip
@pytest.mark.parametrize("version", [proxy_protocol.V1, proxy_protocol.V2])
def test_only_a_mapped_address_is_read_as_ipv4(version, sent, read):
    for source, destination in (("{}", "2001:db8::11"), ("2001:db8::1", "{}")):
        header = proxy_protocol.build(version, source.format(sent), 4711, destination.format(sent), 443)
        expected = Header(len(header), source.format(read), 4711, destination.format(read), 443)
        assert proxy_protocol.parse(header) == expected


CORPUS = Path(__file__).parents[5] / "fuzz" / "corpus" / "proxy_protocol"


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_the_fuzzers_corpus_is_accepted_or_refused_as_named(path):
    refused = {"garbage", "v2-short", "v2-too-long", "v2-version", "v2-cut-short"}
    refused |= {"v1-endless", "v1-few-words", "v1-other-family", "v1-zone", "v1-port", "v1-no-address"}
    assert (outcome(path.read_bytes()) is MalformedHeader) is (path.name in refused)
