# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two streams over real TCP sockets: every byte and every end arrives, whatever the sizes and the order."""

from __future__ import annotations

import contextlib
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
        client = socket.create_connection(server.getsockname())
        return client, server.accept()[0]


def reset_on_close(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class TwoStreams:
    """A relay without backends, counters and log: two streams, a poller, and a thread that turns it."""

    def __init__(self, pipes):
        self.server = self.loop = self
        self.poller = Poller()
        self.pipes = PipePool(pipes)
        self.events = []
        self.client, near = connected()
        far, self.backend = connected()
        ends = {"client": near, "backend": far}
        self.streams = {name: Stream(sock, self, f"{name} eof", f"{name} reset") for name, sock in ends.items()}
        for stream, peer in zip(self.streams.values(), reversed(self.streams.values())):
            stream.peer = peer
            stream.sock.setblocking(False)
            stream.sock.setsockopt(*sockets.URGENT_INLINE)
            self.poller.watch(stream.number, stream.ready)
        for sock in (self.client, self.backend):
            sock.settimeout(PATIENCE)
        self.thread = threading.Thread(target=self.turn, daemon=True)

    def handle(self, event):
        """As Relay.handle(), without a session."""
        self.events.append(event)
        name, _space, what = event.partition(" ")
        if what == "eof":
            self.streams[name].peer.sock.shutdown(socket.SHUT_WR)
            if len(self.events) < 2:
                return
        for stream in self.streams.values():
            sock = stream.detach()
            if what == "reset":
                reset_on_close(sock)
            sock.close()

    def stream_failed(self, stream, _number):
        """As Relay.stream_failed(), without a reason."""
        self.handle(stream.reset)

    def turn(self):
        while any(stream.sock for stream in self.streams.values()):
            if not self.poller.turn(PATIENCE, self.contain):
                self.events.append("nothing more happened")
                return

    def contain(self, _owner, error):
        raise error

    def assert_ended(self, *events):
        """Wait for the end, and check its events; no pipe is lent any more."""
        self.thread.join(PATIENCE)
        assert sorted(self.events) == list(events)
        assert self.pipes.lent == 0

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_exc):
        for sock in (self.client, self.backend):
            sock.close()
        self.thread.join(PATIENCE)
        self.pipes.close()
        self.poller.close()


@contextlib.contextmanager
def running(function, *arguments):
    """Run a function in a thread meanwhile."""
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    yield
    thread.join(PATIENCE)


def send(sock, data, sizes):
    """Send ``data`` in pieces of these sizes over and over."""
    position = 0
    while position < len(data):
        for size in sizes:
            sock.sendall(data[position : position + size])
            position += size


def send_and_shut(sock, data, sizes):
    send(sock, data, sizes)
    sock.shutdown(socket.SHUT_WR)


def exactly(sock, count):
    """Receive ``count`` bytes, or all up to the end."""
    data = b""
    while len(data) < count and (part := sock.recv(count - len(data))):
        data += part
    return data


def summary(data):
    return len(data), hashlib.sha256(data).digest()


def receive(sock):
    """The summary() of all bytes up to the end."""
    data = bytearray()
    while part := sock.recv(1 << 16):
        data += part
    return summary(data)


@pytest.mark.parametrize("pipes", [0, 1, 8])
@pytest.mark.parametrize(("total", "sizes"), [
    (1 << 10, [1]),
    (10 << 20, [1 << 20]),
    (3 << 20, [BUFFER_SIZE]),
    (3 << 20, [BUFFER_SIZE, 1, BUFFER_SIZE - 1, 7]),
    (5 << 20, [400_000, 10]),
])  # fmt: skip
def test_every_byte_arrives_with_traffic_in_both_directions(pipes, total, sizes):
    up, down = random.Random(1).randbytes(total), random.Random(2).randbytes(total)
    received = []
    with TwoStreams(pipes) as two:
        uploading = running(send_and_shut, two.client, up, sizes)
        downloading = running(send_and_shut, two.backend, down, sizes[::-1])
        with uploading, downloading, running(lambda: received.append(receive(two.backend))):
            assert receive(two.client) == summary(down)
        assert received == [summary(up)]
        two.assert_ended("backend eof", "client eof")
        assert [stream.sent for stream in two.streams.values()] == [total, total]


# How many bytes are sent at once; 0 is one urgent byte.

TEST_URGENT = [[0], [3, 0], [0, 3], [3, 0, 3], [BUFFER_SIZE, 0, BUFFER_SIZE], [BUFFER_SIZE - 1, 0, 1]]
TEST_URGENT += [[2 * BUFFER_SIZE, 0, 5], [2_000_000, 0], [2_000_000, 0, 500_000]]

TEST_URGENT_IN_A_ROW = [[0, 0, 0], [3, 0, 0, 3, 0], [1_000_000, 0, 0, 10, 0, 1_000_000, 0]]


def send_plan(sock, pieces, pause):
    """Send (size, bytes) of a plan with pauses, then FIN."""
    for size, piece in pieces:
        if size:
            sock.sendall(piece)
        else:
            sock.send(piece, socket.MSG_OOB)
        time.sleep(pause)
    sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("pipes", [0, 1, 8])
@pytest.mark.parametrize("sender", ["client", "backend"])
@pytest.mark.parametrize("pause", [0, 0.05])
@pytest.mark.parametrize(("plan", "inline"), [
    *((plan, inline) for plan in TEST_URGENT for inline in (True, False)),
    *((plan, True) for plan in TEST_URGENT_IN_A_ROW),
])  # fmt: skip
def test_every_byte_arrives_and_urgent_bytes_as_urgent(pipes, sender, pause, plan, inline):
    """A receiver with SO_OOBINLINE reads urgent bytes in the stream; one without does not."""
    pieces = [(size, random.Random(size).randbytes(size) or b"!") for size in plan]
    with TwoStreams(pipes) as two:
        source, sink = (two.client, two.backend) if sender == "client" else (two.backend, two.client)
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
        with running(send_plan, source, pieces, pause):
            assert receive(sink) == summary(b"".join(piece for size, piece in pieces if size or inline))
        source.close()
        sink.close()
        two.assert_ended("backend eof", "client eof")


@pytest.mark.parametrize("pipes", [0, 8])
def test_a_reset_during_bulk_is_forwarded_and_the_pipe_is_returned(pipes):
    with TwoStreams(pipes) as two:
        with running(send, two.client, bytes(1 << 20), [1 << 20]):
            two.backend.recv(1000)
            reset_on_close(two.backend)
        two.backend.close()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send(two.client, bytes(100 << 20), [1 << 16])
        two.assert_ended("backend reset")


@pytest.mark.skipif(bulk.splice is None, reason="no splice here")
def test_bulk_goes_through_a_pipe_and_small_data_does_not(monkeypatch):
    moved = []

    def spy(source, target, count, splice=bulk.splice):
        moved.append(splice(source, target, count))
        return moved[-1]

    monkeypatch.setattr(bulk, "splice", spy)
    with TwoStreams(8) as two:
        for _request in range(50):
            two.client.sendall(b"x" * 1000)
            assert exactly(two.backend, 1000) == b"x" * 1000
        assert not moved
        with running(send_and_shut, two.client, bytes(20 << 20), [1 << 20]):
            assert receive(two.backend)[0] == 20 << 20
        assert sum(moved) > 20 << 20, "in and out: most of it went through the pipe"


def test_a_pipe_is_returned_although_its_last_piece_was_small(monkeypatch):
    splice = bulk.splice
    monkeypatch.setattr(bulk, "TURNS", range(1))  # others get their turn after each piece
    monkeypatch.setattr(bulk, "splice", lambda source, target, count: splice(source, target, min(count, 1000)))
    with TwoStreams(8) as two:
        size = 2 * BUFFER_SIZE + 5000
        two.client.sendall(bytes(size))
        assert len(exactly(two.backend, size)) == size
        eventually(lambda: two.pipes.lent == 0)


@pytest.mark.parametrize(("flag", "segments"), [(socket.MSG_MORE, 2), (0, 3)])
def test_a_fin_leaves_in_one_segment_with_the_last_bytes(monkeypatch, flag, segments):
    monkeypatch.setattr(stream_module, "_FLAGS_LAST", socket.MSG_DONTWAIT | flag)
    two = TwoStreams(8)
    two.backend.sendall(b"that is all")
    two.backend.shutdown(socket.SHUT_WR)
    with two:
        assert exactly(two.client, 100) == b"that is all"
        info = two.client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 144)
        assert struct.unpack_from("I", info, 140)[0] == segments  # tcpi_segs_in (linux/tcp.h); the first is the SYN
