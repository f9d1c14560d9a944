# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Handover of UDP sessions: documents, many sockets, and a predecessor that dies before the end."""

from __future__ import annotations

import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp import handover
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp.flow_table import Flow


class Upstream:
    """What is sent of an upstream socket."""

    def __init__(self, owner=None):
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.owner = owner
        self.port = self.sock.getsockname()[1]
        self.shared, self.alone = owner is None, owner is not None


@pytest.fixture
def ends():
    left, taken = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, taken:
        yield left, taken


class Reader:
    """A Receiver that has read to the end."""

    def __init__(self, sock):
        self.results = []
        receiver = handover.Receiver(sock, lambda _receiver, *received: self.results.append(received))
        while not self.results:
            receiver.ready(None)
        ((self.document, self.sockets),) = self.results


@pytest.mark.parametrize("count", [0, 1, handover.MOST_AT_ONCE, handover.MOST_AT_ONCE + 1, 600])
def test_every_socket_arrives_and_in_order(ends, count):
    upstreams = [Upstream(("198.51.100.1", number) if number % 2 else None) for number in range(count)]
    handover.send(ends[0], upstreams, [])
    read = Reader(ends[1])
    assert [sock.getsockname()[1] for sock in read.sockets] == [one.port for one in upstreams]
    lanes = [{"shared": one.shared, "owner": list(one.owner) if one.owner else None} for one in upstreams]
    assert read.document["lanes"] == lanes
    assert not any(sock.get_inheritable() for sock in read.sockets)
    for sock in (*read.sockets, *(one.sock for one in upstreams)):
        sock.close()


class Counted:
    """What counts the traffic of a flow."""

    def __init__(self):
        self.bytes = self.datagrams = (0, 0)

    def add_bytes(self, _index, *numbers):
        self.bytes = tuple(map(sum, zip(self.bytes, numbers)))

    def add_datagrams(self, _index, *numbers):
        self.datagrams = tuple(map(sum, zip(self.datagrams, numbers)))


def new_flow():
    key = ("198.51.100.1", 7000)
    return Flow(key, key, (b"", ("198.18.0.21", 53)), Counted(), 0, 60.0, 0.0)


EARLIER = {"step": "any", "answered": True, "started": 1.0, "datagrams_to_backend": 2, "datagrams_to_client": 1}


@pytest.mark.parametrize(("record", "counted"), [
    # A predecessor of an earlier version has counted nothing, and does not send "counted".
    ({**EARLIER, "bytes_to_backend": 200, "bytes_to_client": 100}, ((205, 100), (3, 1))),
    ({**EARLIER, "bytes_to_backend": 0, "bytes_to_client": 0, "counted": [200, 100]}, ((5, 0), (1, 0))),
])  # fmt: skip
def test_traffic_of_a_flow_is_counted_by_the_worker_that_forwarded_it(record, counted):
    flow = new_flow()
    handover.restore(flow, record)
    flow.datagrams_to_backend += 1
    flow.bytes_to_backend += 5
    assert (flow.bytes_to_backend, flow.bytes_to_client, flow.datagrams) == (205, 100, 4), "as in its line of the log"
    flow.count_traffic()
    assert (flow.backends.bytes, flow.backends.datagrams) == counted


@pytest.mark.parametrize("sent", [False, True])
def test_nothing_is_taken_over_from_a_predecessor_that_died_or_has_another_schema(ends, monkeypatch, sent):
    upstream = Upstream()
    monkeypatch.setattr(handover, "SCHEMA", handover.SCHEMA + 1)
    if sent:
        handover.send(ends[0], [upstream], [])
    monkeypatch.undo()
    ends[0].close()
    assert Reader(ends[1]).results == [(None, ())]
    upstream.sock.close()


def test_from_a_predecessor_that_died_while_it_sent_nothing_is_taken_over(ends):
    upstreams = [Upstream() for _number in range(300)]
    messages = []
    dying = type("Dying", (), {"settimeout": ends[0].settimeout})()

    def only_two(buffers, ancillary, *rest):
        messages.append(buffers)
        return ends[0].sendmsg(buffers, ancillary, *rest) if len(messages) < 3 else 0

    dying.sendmsg = only_two
    handover.send(dying, upstreams, [])
    ends[0].close()
    assert Reader(ends[1]).results == [(None, ())]
    for upstream in upstreams:
        upstream.sock.close()
