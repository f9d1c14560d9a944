# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lines about connections of kernel services, and a reader that is slow. Events are tested in tests/kernel."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper import session_log
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.conntrack_entries import End

from ..netlink.test_conntrack import translated
from .test_service_connections import entry, service

COMMON = {"level": "info", "time": 1000.123, "service": "web", "client_port": 5000, "backend": "b"}
IPV4 = {"listener": "198.18.0.11:80", "client": "198.18.0.99", "source": "198.18.0.99"}
IPV6 = {"listener": "[2001:db8::11]:80", "client": "2001:db8::63", "source": "2001:db8::63"}
PACKETS = {"packets_to_backend": 5, "packets_to_client": 4}
DATAGRAMS = {"datagrams_to_backend": 5, "datagrams_to_client": 4}
BYTES = {"bytes_to_backend": 500, "bytes_to_client": 40000}
NUMBERS = ((5, 4), (500, 40000))

RECORDS = [
    ("tcp", "ipv4", (*NUMBERS, 1.5), {"event": "connection", **IPV4, **PACKETS, **BYTES, "duration": 1.5}),
    ("udp", "ipv6", (*NUMBERS, 1.5), {"event": "session", **IPV6, **DATAGRAMS, **BYTES, "duration": 1.5}),
    ("tcp", "ipv6", (None, None, None), {"event": "connection", **IPV6}),
]


@pytest.mark.parametrize(("protocol", "family", "numbers", "expected"), RECORDS)
def test_a_line_has_the_names_of_the_forwarders_lines(protocol, family, numbers, expected):
    end = End(entry("b", protocol, family), *numbers)
    assert session_log.record(end, service(protocol, family), "b", 1000.1234) == {**COMMON, **expected}


class Socket:
    """Messages that are received, and errors."""

    def __init__(self, *received):
        self._received = list(received)

    def recv(self, _size):
        one = self._received.pop(0) if self._received else BlockingIOError()
        if isinstance(one, bytes):
            return one
        raise one


def test_what_the_kernel_drops_is_counted_and_the_rest_read(monkeypatch):
    event = bytes(16) + translated("203.0.113.9", "198.18.0.11", "198.18.0.21", 6)
    lost = OSError(errno.ENOBUFS, "No buffer space available")
    received = Socket(event, lost, event, bytes(16) + b"\2\0\0\0", lost)
    monkeypatch.setattr(session_log, "listen", lambda *_all: received)
    monkeypatch.setattr(session_log.socket_filter, "attach", lambda *_all: None)
    events = session_log.Events({"198.18.0.11"})
    assert [end.entry.port for end in events.read()] == [80, 80]
    assert events.lost == 2
    assert events.read() == []


@pytest.mark.parametrize("make", [os.pipe, socket.socketpair])
def test_a_slow_reader_never_blocks_and_what_it_misses_is_counted(make, monkeypatch):
    monkeypatch.setattr(session_log, "MOST_WAITING", 100)
    reader, writer = make()
    descriptors = [end if isinstance(end, int) else end.fileno() for end in (reader, writer)]
    lines = session_log.Lines(descriptors[1])
    while lines.flush():
        for _number in range(100):
            lines.add({"text": "x" * 1000})
    assert lines.dropped == 0
    for _number in range(200):
        lines.add({"text": "late"})
    assert lines.dropped >= 100
    received = b""
    while not lines.flush() or not received.endswith(b'{"text":"late"}\n'):
        received += os.read(descriptors[0], 1 << 20)
    assert set(received.splitlines()) == {b'{"text":"%s"}' % (b"x" * 1000), b'{"text":"late"}'}
    for end in (reader, writer):
        os.close(end) if isinstance(end, int) else end.close()
