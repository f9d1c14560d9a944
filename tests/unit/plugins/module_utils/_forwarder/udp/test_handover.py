# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one worker leaves and the next one reads: documents, many sockets, and a predecessor that just died."""

from __future__ import annotations

import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp import handover


class Upstream:
    def __init__(self, owner=None):
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.owner = owner
        self.port = self.sock.getsockname()[1]
        self.shared = owner is None


@pytest.fixture
def ends():
    left, taken = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, taken:
        yield left, taken


class Reader:
    """An Heir, read to its end."""

    def __init__(self, sock):
        self.told = []
        self.heir = handover.Receiver(sock, lambda _heir, document, socks: self.told.append((document, list(socks))))
        while not self.told:
            self.heir.ready(None)
        ((self.document, self.sockets),) = self.told


@pytest.mark.parametrize("count", [0, 1, handover.MOST_AT_ONCE, handover.MOST_AT_ONCE + 1, 600])
def test_every_socket_arrives_in_its_place(ends, count):
    lanes = [Upstream(("198.51.100.1", number) if number % 2 else None) for number in range(count)]
    handover.send(ends[0], lanes, [])
    read = Reader(ends[1])
    assert [sock.getsockname()[1] for sock in read.sockets] == [lane.port for lane in lanes]
    assert read.document["lanes"] == [
        {"shared": lane.shared, "owner": list(lane.owner) if lane.owner else None} for lane in lanes
    ]
    assert not any(sock.get_inheritable() for sock in read.sockets)
    for sock in (*read.sockets, *(lane.sock for lane in lanes)):
        sock.close()


def test_a_predecessor_that_died_has_left_nothing(ends):
    ends[0].close()
    assert Reader(ends[1]).told == [(None, [])]


def test_a_predecessor_that_died_in_the_middle_has_left_nothing(ends):
    lanes = [Upstream() for _number in range(300)]
    messages = []
    left = type("Counting", (), {"settimeout": ends[0].settimeout})()

    def only_two(buffers, ancillary, *rest):
        messages.append(buffers)
        return ends[0].sendmsg(buffers, ancillary, *rest) if len(messages) < 3 else 0

    left.sendmsg = only_two
    handover.send(left, lanes, [])
    ends[0].close()
    assert Reader(ends[1]).told == [(None, [])]
    for lane in lanes:
        lane.sock.close()


def test_a_document_of_another_schema_is_not_read(ends, monkeypatch):
    lane = Upstream()
    monkeypatch.setattr(handover, "SCHEMA", handover.SCHEMA + 1)
    handover.send(ends[0], [lane], [])
    monkeypatch.undo()
    assert Reader(ends[1]).told == [(None, [])]
    lane.sock.close()
