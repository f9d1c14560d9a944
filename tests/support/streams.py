# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Long TCP streams and UDP flows whose bytes are verified by position, and the longest silence of each kind.

    python streams.py serve NAME PORT [PORT ...]
    python streams.py client ADDRESS PORT KIND=COUNT [KIND=COUNT ...]

The kinds, as the client sees them:

- ``down``: the server sends all the time, the client never does.
- ``up``: the client sends all the time, the server says "." for what it has read.
- ``idle``: nobody sends; every IDLE seconds the server speaks.
- ``echo``: every ECHO seconds the client speaks, and the server answers; the client does not wait for it.
- ``udp``: as echo, with datagrams.

A stream ends when a byte is not the one that belongs to its position, or when another server answers. The client
prints ``ready``, then reads commands from stdin: ``mark`` begins a measurement, ``report`` prints it as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import struct
import sys
import time
from array import array
from collections.abc import Iterable, Iterator

PACE = float(os.environ.get("PACE", "0.1"))  # seconds between the blocks of a stream
ECHO, IDLE = 0.5, float(os.environ.get("IDLE", "3"))
BLOCK = 2048
PATIENCE = 20.0  # seconds until a stream must have begun
HEADER = struct.Struct("!4sI")  # the kind, and the position at which the stream begins
WORDS = 1 << 20
CYCLE = 4 * WORDS
# Each word of four bytes is its own number, so that lost, doubled or foreign bytes are seen.
NUMBERS = array("I", range(WORDS)).tobytes()
PATTERN = NUMBERS + NUMBERS[:65536]
KINDS = ("down", "up", "idle", "echo", "udp")


def content(position: int, length: int) -> bytes:
    start = position % CYCLE
    return PATTERN[start : start + length]


# --- the server ------------------------------------------------------------------------------------------------------


class Servers:
    """The servers of one host; they greet with its name."""

    def __init__(self, name: str):
        self.name = name.encode()

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            kind, position = HEADER.unpack(await reader.readexactly(HEADER.size))
            writer.write(self.name + b"\n")
            await getattr(self, kind.decode().strip())(reader, writer, position)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            writer.transport.abort()

    async def down(self, _reader, writer, position, size: int = BLOCK, pause: float = PACE) -> None:
        while True:
            writer.write(content(position, size))
            position += size
            await writer.drain()
            await asyncio.sleep(pause)

    async def idle(self, reader, writer, position) -> None:
        await asyncio.sleep(position % 1000 / 1000 * IDLE)
        await self.down(reader, writer, position, 4, IDLE)

    async def up(self, reader, writer, position) -> None:
        while data := await reader.read(65536):
            if data != content(position, len(data)):
                return
            position += len(data)
            writer.write(b".")
            await writer.drain()

    async def echo(self, reader, writer, _position) -> None:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, name: str):
        self.name = name.encode()

    def connection_made(self, transport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple) -> None:
        self.transport.sendto(b" ".join((self.name, addr[0].encode(), b"%d" % addr[1], data)), addr)


async def serve(name: str, ports: list[int]) -> None:
    for port in ports:
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            await asyncio.start_server(Servers(f"{name}:{port}").stream, address, port, family=family, backlog=1024)
            sock = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address, port))
            await asyncio.get_running_loop().create_datagram_endpoint(
                lambda port=port: Datagrams(f"{name}:{port}"), sock=sock
            )
    print("ready", flush=True)
    await asyncio.Event().wait()


# --- the client ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sending(writer: asyncio.StreamWriter, blocks: Iterable[bytes], pause: float) -> Iterator[None]:
    """Meanwhile send a block after each pause."""

    async def send() -> None:
        for block in blocks:
            writer.write(block)
            await writer.drain()
            await asyncio.sleep(pause)

    task = asyncio.create_task(send())
    try:
        yield
    finally:
        task.cancel()


class Stream:
    """One stream or flow: which server it has, when it heard last, and why it ended."""

    def __init__(self, kind: str, number: int):
        self.kind, self.position = kind, number * 4100
        self.server, self.error = "", ""
        self.heard = time.monotonic()
        self.silence, self.moved = 0.0, False

    def hit(self) -> None:
        now = time.monotonic()
        self.silence = max(self.silence, now - self.heard)
        self.heard, self.moved = now, True

    async def run(self, address: str, port: int) -> None:
        try:
            await (self.flow if self.kind == "udp" else self.stream)(address, port)
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            self.error = type(error).__name__

    async def stream(self, address: str, port: int) -> None:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(address, port), PATIENCE)
        writer.write(HEADER.pack(self.kind.encode().ljust(4), self.position))
        self.server = (await asyncio.wait_for(reader.readline(), PATIENCE)).decode().strip()
        self.hit()
        try:
            self.error = await getattr(self, self.kind)(reader, writer)
        finally:
            writer.transport.abort()

    async def down(self, reader, _writer) -> str:
        while data := await reader.read(65536):
            if data != content(self.position, len(data)):
                return "garbled"
            self.position += len(data)
            self.hit()
        return "EOF"

    idle = down

    async def up(self, reader, writer) -> str:
        blocks = (content(position, BLOCK) for position in itertools.count(self.position, BLOCK))
        with sending(writer, blocks, PACE):
            while await reader.read(65536):
                self.hit()
        return "EOF"

    async def echo(self, reader, writer) -> str:
        await asyncio.sleep(self.position % 1000 / 1000 * ECHO)
        lines, answers = itertools.tee(b"%d %d\n" % (self.position, number) for number in itertools.count())
        with sending(writer, lines, ECHO):
            while answer := await reader.readline():
                if answer != next(answers):
                    return "garbled"
                self.hit()
        return "EOF"

    async def flow(self, address: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect((address, port))
            own = [str(part) for part in sock.getsockname()[:2]]
            await asyncio.sleep(self.position % 1000 / 1000 * ECHO)
            while True:
                sock.send(b"%d" % self.position)
                try:
                    data = await asyncio.wait_for(loop.sock_recv(sock, 100), ECHO)
                except asyncio.TimeoutError:
                    continue
                except ConnectionError:  # ICMP; the next datagram may arrive
                    await asyncio.sleep(ECHO)
                    continue
                server, *source, number = data.decode().split()
                if source != own or int(number) != self.position:
                    self.error = "garbled"
                    return
                if self.server not in ("", server):
                    self.error = f"moved from {self.server} to {server}"
                    return
                self.server = server
                self.hit()
                await asyncio.sleep(ECHO)


def report(streams: list[Stream]) -> dict[str, dict]:
    """Of each kind: how many there are, have moved bytes since the mark, and the longest silence of these."""
    found = {}
    for kind in KINDS:
        mine = [stream for stream in streams if stream.kind == kind]
        moved = [stream for stream in mine if stream.moved and not stream.error]
        errors: dict[str, int] = {}
        for stream in mine:
            if stream.error:
                errors[stream.error] = errors.get(stream.error, 0) + 1
        if mine:
            silence = max((stream.silence for stream in moved), default=0.0)
            found[kind] = {"of": len(mine), "moved": len(moved), "silence": round(silence, 2), "errors": errors}
            gone = [stream.server for stream in mine if stream not in moved]
            found[kind]["lost"] = {server: gone.count(server) for server in sorted({*gone})}
    return found


async def client(address: str, port: int, counts: dict[str, int]) -> None:
    loop = asyncio.get_running_loop()
    streams = [Stream(kind, number) for kind, count in counts.items() for number in range(count)]
    for number, stream in enumerate(streams):
        stream.task = asyncio.create_task(stream.run(address, port))
        if number % 50 == 49:  # a backlog is finite
            await asyncio.sleep(0.05)
    while not all(stream.server or stream.error for stream in streams):
        await asyncio.sleep(0.02)
    print("ready", flush=True)
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while command := (await commands.readline()).decode().strip():
        if command == "mark":
            for stream in streams:
                stream.silence, stream.moved = 0.0, False
        print(json.dumps(report(streams)), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve(sys.argv[2], [int(port) for port in sys.argv[3:]]))
    else:
        pairs = [argument.split("=") for argument in sys.argv[4:]]
        asyncio.run(client(sys.argv[2], int(sys.argv[3]), {kind: int(count) for kind, count in pairs}))
