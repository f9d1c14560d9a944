# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Both ends of the soak's load; each is a process with one loop.

    python soak_ends.py server NAME PORT ADDRESS...     echo over TCP; over UDP, say who asked and who answers
    python soak_ends.py client ADDRESS... < commands    the load, an equal part to each address, and to each port below
                                                        and the one KERNEL above it

The server listens on PORT and on the one KERNEL above it.

The client says "ready" once every stream has carried bytes and every flow was answered. For each line on its standard
input it prints what happened since the last one, as JSON, and counts anew; streams and flows go on. At the end of its
input it ends.

{"seconds", "connections", "slowest": seconds, "streams", "bytes", "flows", "datagrams", "failures": {what: how often}}
"""

from __future__ import annotations

import collections
import heapq
import itertools
import json
import random
import selectors
import socket
import sys
import time
from collections.abc import Callable

WEB, RAW, ECHO = 8000, 7000, 5300
KERNEL = 1  # added to the ports above: the same services in the kernel
OF = {0: "", KERNEL: " of the kernel"}
RATE = 200  # new connections a second
STREAMS, FLOWS = 100, 500
CHUNK, STREAM_PAUSE = 8192, 0.1  # bytes of a stream's chunk, and seconds between chunks
NEW_STREAM = 2.0  # seconds after which a new stream replaces the oldest, so that many generations have streams
FLOW_PAUSE = 0.5  # seconds between requests of a flow
LATE = 10.0  # seconds after which a connection or an answer counts as lost
REQUEST = b"GET / HTTP/1.0\r\n\r\n"
#: What streams carry: bytes that say where they belong. A prime length, so that no chunk comes again at its place.
PATTERN = random.Random(4).randbytes(65521) * 2
PERIOD = len(PATTERN) // 2

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


def family_of(address: str) -> socket.AddressFamily:
    """Return the family of an address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def pattern(offset: int, size: int) -> bytes:
    """Return the expected bytes at an offset of a stream; ``size`` is at most PERIOD."""
    begin = offset % PERIOD
    return PATTERN[begin : begin + size]


class Loop:
    """A selector with callbacks, and a heap of timers."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Call ``what`` at a monotonic time."""
        self._number += 1
        heapq.heappush(self._due, (when, self._number, what))

    def turn(self) -> None:
        """Wait for the next events and timers, and run their callbacks."""
        timeout = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
        for key, mask in self.selector.select(timeout):
            key.data(mask)
        while self._due and self._due[0][0] <= time.monotonic():
            heapq.heappop(self._due)[2]()


# -- the server --------------------------------------------------------------------------------------------------------


class Echo:
    """A connection that echoes; it reads only while its output is empty."""

    def __init__(self, loop: Loop, sock: socket.socket):
        sock.setblocking(False)
        self._loop, self._sock, self._waiting = loop, sock, memoryview(b"")
        loop.selector.register(sock, READ, self.ready)

    def ready(self, _mask: int) -> None:
        """The loop's callback."""
        try:
            if not self._waiting:
                self._waiting = memoryview(self._sock.recv(65536))
                if not self._waiting:
                    self._close()
                    return
            self._waiting = self._waiting[self._sock.send(self._waiting) :]
        except BlockingIOError:
            pass
        except OSError:
            self._close()
            return
        self._loop.selector.modify(self._sock, WRITE if self._waiting else READ, self.ready)

    def _close(self) -> None:
        self._loop.selector.unregister(self._sock)
        self._sock.close()


def server(name: str, port: int, addresses: list[str]) -> None:
    """Serve for ever."""
    loop = Loop()
    for address, shift in itertools.product(addresses, OF):
        listener = socket.create_server((address, port + shift), family=family_of(address), backlog=1024)
        loop.selector.register(listener, READ, lambda _mask, one=listener: Echo(loop, one.accept()[0]))
        datagrams = socket.socket(family_of(address), socket.SOCK_DGRAM)
        datagrams.bind((address, port + shift))
        loop.selector.register(datagrams, READ, lambda _mask, one=datagrams: answer(name, one))
    print("ready", flush=True)
    while True:
        loop.turn()


def answer(name: str, sock: socket.socket) -> None:
    """Answer a datagram with its first word, our name, and the client's address."""
    question, peer = sock.recvfrom(2048)
    sock.sendto(b"%s %s %s %d" % (question, name.encode(), peer[0].encode(), peer[1]), peer)


# -- the client --------------------------------------------------------------------------------------------------------


class Load:
    """Everything that the client does, and counters since the last report."""

    def __init__(self, addresses: list[str]):
        self.loop = Loop()
        self.targets = list(itertools.product(addresses, (0, KERNEL)))
        self.begun = 0
        self.streams: list[Stream] = []
        for _stream in range(STREAMS):
            self.begin_stream()
        self.flows = [Flow(self, *self.targets[number % len(self.targets)]) for number in range(FLOWS)]
        self.asked = 0
        self._begin()

    def _begin(self) -> None:
        self.since, self.connections, self.slowest, self.bytes, self.datagrams = time.monotonic(), 0, 0.0, 0, 0
        self.failures: collections.Counter[str] = collections.Counter()

    def fail(self, what: str, error: BaseException | str = "") -> None:
        """Count a failure by its kind and reason."""
        self.failures[f"{what}: {getattr(error, 'strerror', None) or error}" if error else what] += 1

    def report(self) -> dict:
        """Return the counters since the last report."""
        told = {
            "seconds": time.monotonic() - self.since,
            "connections": self.connections,
            "slowest": self.slowest,
            "streams": len(self.streams),
            "bytes": self.bytes,
            "flows": sum(not flow.changed for flow in self.flows),
            "datagrams": self.datagrams,
            "failures": dict(self.failures),
        }
        self._begin()
        return told

    def run(self) -> None:
        """Work until standard input ends."""
        deadline = time.monotonic() + 3 * LATE
        while not all(one.proven for one in (*self.streams, *self.flows)):
            if time.monotonic() > deadline or self.failures:
                raise SystemExit(f"not everything has started:  {dict(self.failures)}")
            self.loop.turn()
        self._begin()
        print("ready", flush=True)
        self.loop.selector.register(sys.stdin, READ, self._told)
        self._open(time.monotonic())
        self.loop.at(time.monotonic() + NEW_STREAM, self._renew)
        while True:
            self.loop.turn()

    def _told(self, _mask: int) -> None:
        if not sys.stdin.readline():
            raise SystemExit(0)
        print(json.dumps(self.report()), flush=True)

    def _open(self, due: float) -> None:
        """Open the next connection; connections have fixed times, however long each takes."""
        Connection(self, *self.targets[self.asked % len(self.targets)])
        self.asked += 1
        self.loop.at(due + 1 / RATE, lambda: self._open(due + 1 / RATE))

    def begin_stream(self) -> None:
        """Open one more stream."""
        self.streams.append(Stream(self, *self.targets[self.begun % len(self.targets)], self.begun))
        self.begun += 1

    def _renew(self) -> None:
        """Replace the oldest open stream by a new one."""
        if self.streams:
            self.streams[0].ending = True
        self.loop.at(time.monotonic() + NEW_STREAM, self._renew)


class Connection:
    """A new connection: one request, its complete answer, the end."""

    def __init__(self, load: Load, address: str, shift: int):
        self._load, self._begun, self._answer = load, time.monotonic(), b""
        self._what = "connection" + OF[shift]
        self._sock: socket.socket | None = socket.socket(family_of(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._sock.connect_ex((address, WEB + shift))
        load.loop.selector.register(self._sock, WRITE, self._connected)
        load.loop.at(self._begun + LATE, self._too_late)

    def _connected(self, _mask: int) -> None:
        try:
            self._sock.send(REQUEST)
        except OSError as error:
            self._end(error)
            return
        self._load.loop.selector.modify(self._sock, READ, self._heard)

    def _heard(self, _mask: int) -> None:
        try:
            data = self._sock.recv(65536)
        except OSError as error:
            self._end(error)
            return
        self._answer += data
        if not data:
            body = self._answer.partition(b"\r\n\r\n")[2]
            self._end("" if body in (b"b\n", b"c\n", b"d\n") else f"wrong answer {body[:20]!r}")

    def _too_late(self) -> None:
        if self._sock:
            self._end(f"no answer within {LATE:g} s")

    def _end(self, error: BaseException | str) -> None:
        load = self._load
        load.loop.selector.unregister(self._sock)
        self._sock.close()
        self._sock = None
        load.connections += 1
        load.slowest = max(load.slowest, time.monotonic() - self._begun)
        if error:
            load.fail(self._what, error)


class Stream:
    """A long connection to the echo; every byte is checked."""

    def __init__(self, load: Load, address: str, shift: int, number: int):
        self._load, self._number, self._what = load, number, "stream" + OF[shift]
        self._sent = self._received = 0
        self.over = self.ending = False
        self._asked_at = time.monotonic()
        self._sock = socket.create_connection((address, RAW + shift), timeout=LATE)
        self._sock.setblocking(False)
        load.loop.selector.register(self._sock, READ, self._heard)
        load.loop.at(time.monotonic() + number % STREAMS * STREAM_PAUSE / STREAMS, self._send)

    @property
    def proven(self) -> bool:
        """Whether it has received bytes."""
        return self._received > 0

    def _send(self) -> None:
        """Send the next chunk once the last one is back."""
        if self.over:
            return
        now = time.monotonic()
        if self._received == self._sent and self.ending:
            self._end()
            self._load.begin_stream()
            return
        if self._received == self._sent:
            try:
                self._sent += self._sock.send(pattern(self._number * 641 + self._sent, CHUNK))
            except OSError as error:
                self._broken(error)
                return
            self._asked_at = now
        elif now - self._asked_at > LATE:
            self._broken(f"stands still for {LATE:g} s")
            return
        self._load.loop.at(now + STREAM_PAUSE, self._send)

    def _heard(self, _mask: int) -> None:
        try:
            data = self._sock.recv(65536)
        except OSError as error:
            self._broken(error)
            return
        if data != pattern(self._number * 641 + self._received, len(data)) or not data:
            self._broken("wrong bytes" if data else "ended")
            return
        self._received += len(data)
        self._load.bytes += len(data)

    def _broken(self, error: BaseException | str) -> None:
        self._load.fail(self._what, error)
        self._end()

    def _end(self) -> None:
        self.over = True
        self._load.streams.remove(self)
        self._load.loop.selector.unregister(self._sock)
        self._sock.close()


class Flow:
    """A UDP client that sends one request after another, and records the backend and the source that it sees."""

    def __init__(self, load: Load, address: str, shift: int):
        self._load, self._to, self._what = load, (address, ECHO + shift), "UDP flow" + OF[shift]
        self._asked, self._answered, self._asked_at = 0, True, 0.0
        self._seen = b""  # backend, client's address, source port
        self.changed = False  # whether that has ever changed
        self._sock = socket.socket(family_of(address), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        load.loop.selector.register(self._sock, READ, self._heard)
        load.loop.at(time.monotonic() + random.random() * FLOW_PAUSE, self._ask)

    @property
    def proven(self) -> bool:
        """Whether it was answered."""
        return bool(self._seen)

    def _ask(self) -> None:
        now = time.monotonic()
        if self._answered or now - self._asked_at > LATE:
            if not self._answered:
                self._load.fail(self._what, f"no answer within {LATE:g} s")
            self._asked, self._answered, self._asked_at = self._asked + 1, False, now
            try:
                self._sock.sendto(b"%d" % self._asked, self._to)
            except OSError as error:
                self._load.fail(self._what, error)
        self._load.loop.at(now + FLOW_PAUSE, self._ask)

    def _heard(self, _mask: int) -> None:
        try:
            data, source = self._sock.recvfrom(2048)
        except OSError as error:
            self._load.fail(self._what, error)
            return
        question, _blank, seen = data.partition(b" ")
        self._load.datagrams += 1
        if source[:2] != self._to:
            self._load.fail(self._what, "answered from elsewhere")
        if question == b"%d" % self._asked:
            self._answered = True
        if self._seen and seen != self._seen:
            self.changed = True
            kept = [a == b for a, b in zip(seen.split(), self._seen.split())]
            self._load.fail(self._what, "another source port" if kept[0] else "another backend")
        self._seen = seen


if __name__ == "__main__":
    if sys.argv[1] == "server":
        server(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
    Load(sys.argv[2:]).run()
