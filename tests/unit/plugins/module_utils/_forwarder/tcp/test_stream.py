# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two streams over real TCP sockets: every byte and every end arrives, whatever the sizes and the order."""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import threading
import time

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop import sockets
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.poller import Poller
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp import bulk
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp import stream as stream_module
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp.splice import PipePool
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp.stream import BUFFER_SIZE, Stream

from tests.support.waiting import eventually

PATIENCE = 20


def connected():
    """The two ends of a TCP connection over the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _address = server.accept()
    return one, other


class Middle:
    """A relay without backends, counters and log: two streams, a poller, and a thread that turns it."""

    def __init__(self, pipes):
        self.server = self.loop = self
        self.poller = Poller()
        self.pipes = PipePool(pipes)
        self.events = []
        self.client, near = connected()
        far, self.backend = connected()
        for sock in (self.client, self.backend):
            sock.settimeout(PATIENCE)
        self.streams = {"client": Stream(near, self, "client eof", "client reset")}
        self.streams["backend"] = Stream(far, self, "backend eof", "backend reset")
        one, other = self.streams["client"], self.streams["backend"]
        one.peer, other.peer = other, one
        for each in self.streams.values():
            each.sock.setblocking(False)
            each.sock.setsockopt(*sockets.URGENT_INLINE)
            self.poller.watch(each.number, each.ready)
        self.thread = threading.Thread(target=self.turn, daemon=True)

    def handle(self, event):
        """As Relay.handle(), without a session."""
        self.events.append(event)
        name, _space, what = event.partition(" ")
        if what == "eof":
            self.streams[name].peer.sock.shutdown(socket.SHUT_WR)
            if len([one for one in self.events if one.endswith("eof")]) < 2:
                return
        for one in self.streams.values():
            sock = one.detach()
            if what == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

    def stream_failed(self, stream, _number):
        """As Relay.stream_failed(), without a reason."""
        self.handle(stream.reset)

    def turn(self):
        while any(one.sock for one in self.streams.values()):
            if not self.poller.turn(PATIENCE, self.contain):
                self.events.append("nothing more happened")
                return

    def contain(self, _owner, error):
        raise error

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_exc):
        for sock in (self.client, self.backend):
            sock.close()
        self.thread.join(PATIENCE)
        self.pipes.close()
        self.poller.close()


def send(sock, data, sizes, end=True):
    """Send ``data`` from a thread, in pieces of these sizes over and over."""

    def run():
        position = 0
        while position < len(data):
            for size in sizes:
                sock.sendall(data[position : position + size])
                position += size
        if end:
            sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def exactly(sock, count):
    """Receive ``count`` bytes."""
    data = b""
    while len(data) < count and (part := sock.recv(count - len(data))):
        data += part
    return data


def send_until_refused(sock):
    while True:
        sock.sendall(bytes(1 << 16))


def receive(sock, size=1 << 16):
    digest, total = hashlib.sha256(), 0
    while part := sock.recv(size):
        digest.update(part)
        total += len(part)
    return total, digest.digest()


TEST_SIZES = [
    (1 << 10, [1]),
    (10 << 20, [1 << 20]),
    (3 << 20, [BUFFER_SIZE]),
    (3 << 20, [BUFFER_SIZE, 1, BUFFER_SIZE - 1, 7]),
    (5 << 20, [400_000, 10]),
]


@pytest.mark.parametrize("pipes", [0, 1, 8])
@pytest.mark.parametrize(("total", "sizes"), TEST_SIZES)
def test_every_byte_arrives_with_traffic_in_both_directions(pipes, total, sizes):
    up, down = random.Random(1).randbytes(total), random.Random(2).randbytes(total)
    with Middle(pipes) as middle:
        senders = [send(middle.client, up, sizes), send(middle.backend, down, sizes[::-1])]
        received = []
        reader = threading.Thread(target=lambda: received.append(receive(middle.backend)))
        reader.start()
        assert receive(middle.client) == (total, hashlib.sha256(down).digest())
        reader.join(PATIENCE)
        assert received == [(total, hashlib.sha256(up).digest())]
        for sender in senders:
            sender.join(PATIENCE)
        middle.thread.join(PATIENCE)
        assert sorted(middle.events) == ["backend eof", "client eof"]
        assert (middle.streams["backend"].sent, middle.streams["client"].sent) == (total, total)
        assert middle.pipes.lent == 0


# How many bytes are sent at once; 0 is one urgent byte.
TEST_URGENT = [
    [0],
    [3, 0],
    [0, 3],
    [3, 0, 3],
    [BUFFER_SIZE, 0, BUFFER_SIZE],
    [BUFFER_SIZE - 1, 0, 1],
    [2 * BUFFER_SIZE, 0, 5],
    [2_000_000, 0],
    [2_000_000, 0, 500_000],
]
TEST_URGENT_IN_A_ROW = [[0, 0, 0], [3, 0, 0, 3, 0], [1_000_000, 0, 0, 10, 0, 1_000_000, 0]]


def send_plan(sock, plan, pause):
    """Send a plan of TEST_URGENT with pauses, then FIN; return (all bytes, all but the urgent ones)."""
    pieces = [random.Random(size).randbytes(size) or b"!" for size in plan]

    def run():
        for size, piece in zip(plan, pieces):
            if size:
                sock.sendall(piece)
            else:
                sock.send(piece, socket.MSG_OOB)
            time.sleep(pause)
        sock.shutdown(socket.SHUT_WR)

    threading.Thread(target=run, daemon=True).start()
    return b"".join(pieces), b"".join(piece for size, piece in zip(plan, pieces) if size)


@pytest.mark.parametrize("pipes", [0, 1, 8])
@pytest.mark.parametrize("sender", ["client", "backend"])
@pytest.mark.parametrize("pause", [0, 0.05])
@pytest.mark.parametrize(
    ("plan", "inline"),
    [(plan, inline) for plan in TEST_URGENT for inline in (True, False)]
    + [(plan, True) for plan in TEST_URGENT_IN_A_ROW],
)
def test_every_byte_arrives_and_urgent_bytes_as_urgent(pipes, sender, pause, plan, inline):
    """A receiver with SO_OOBINLINE reads urgent bytes in the stream; one without does not."""
    with Middle(pipes) as middle:
        source, sink = (middle.client, middle.backend) if sender == "client" else (middle.backend, middle.client)
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
        whole, plain = send_plan(source, plan, pause)
        wanted = whole if inline else plain
        assert receive(sink) == (len(wanted), hashlib.sha256(wanted).digest())
        source.close()
        sink.close()
        middle.thread.join(PATIENCE)
        assert sorted(middle.events) == ["backend eof", "client eof"]
        assert middle.pipes.lent == 0


@pytest.mark.parametrize("pipes", [0, 8])
def test_a_reset_during_bulk_is_forwarded_and_the_pipe_is_returned(pipes):
    with Middle(pipes) as middle:
        sender = send(middle.client, bytes(1 << 20), [1 << 20], end=False)
        middle.backend.recv(1000)
        middle.backend.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sender.join(PATIENCE)
        middle.backend.close()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_until_refused(middle.client)
        middle.thread.join(PATIENCE)
        assert middle.events == ["backend reset"]
        assert middle.pipes.lent == 0


@pytest.mark.skipif(bulk.splice is None, reason="no splice here")
def test_bulk_goes_through_a_pipe_and_small_data_does_not(monkeypatch):
    moved = []

    def spy(source, target, count, splice=bulk.splice):
        moved.append(splice(source, target, count))
        return moved[-1]

    monkeypatch.setattr(bulk, "splice", spy)
    with Middle(8) as middle:
        for _request in range(50):
            middle.client.sendall(b"x" * 1000)
            assert exactly(middle.backend, 1000) == b"x" * 1000
        assert not moved
        send(middle.client, bytes(20 << 20), [1 << 20])
        assert receive(middle.backend)[0] == 20 << 20
        assert sum(moved) > 20 << 20, "in and out: most of it went through the pipe"


def test_a_pipe_is_returned_although_its_last_piece_was_small(monkeypatch):
    whole = bulk.splice
    monkeypatch.setattr(bulk, "TURNS", range(1))  # others get their turn after each piece
    monkeypatch.setattr(bulk, "splice", lambda source, target, count: whole(source, target, min(count, 1000)))
    with Middle(8) as middle:
        size = 2 * BUFFER_SIZE + 5000
        middle.client.sendall(bytes(size))
        assert len(exactly(middle.backend, size)) == size
        eventually(lambda: middle.pipes.lent == 0)


@pytest.mark.parametrize(("flag", "segments"), [(socket.MSG_MORE, 2), (0, 3)])
def test_a_fin_leaves_in_one_segment_with_the_last_bytes(monkeypatch, flag, segments):
    monkeypatch.setattr(stream_module, "_FLAGS_LAST", socket.MSG_DONTWAIT | flag)
    middle = Middle(8)
    middle.backend.sendall(b"that is all")
    middle.backend.shutdown(socket.SHUT_WR)
    with middle:
        assert exactly(middle.client, 100) == b"that is all"
        info = middle.client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 144)
        assert struct.unpack_from("I", info, 140)[0] == segments  # tcpi_segs_in (linux/tcp.h); the first is the SYN
