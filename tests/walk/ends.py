# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Both ends of the walk's load; each is a process with one loop and needs only the standard library.

    python ends.py server NAME PORT ADDRESS...   over TCP and UDP, answer "NAME CLIENT PORT " and the line that came
    python ends.py client RATE < commands        the load, as the commands say; one line of JSON for each event

Commands, one JSON object on a line:
{"web": [[host, port] ...]}                              open RATE connections a second there, in turn; empty: none
{"open": "stream" | "flow", "count", "to": [[host, port] ...], "reopen": bool, "life": seconds or none}
    hold sessions with a beat of a second; after "life", or up to a quarter more, the client closes a stream
{"close": true, "backend": name or null, "host": address or null}    close sessions as a client does; see "reopen"

Events: {"at": seconds since the epoch, "event": ..., more}
"connection": "seconds", "error" (null: served)
"began": "id", "kind", "to", "backend"        a session has its first answer
"closed": "id", "kind", "to", "backend"       as the command says
"broken": "id", "kind", "to", "backend", "how", "age" (seconds)

``how`` is "reset" or "ended" (RST or FIN), "silent" (no answer within LATE seconds), "refused" (never began), and for a
flow "another backend" or "another port" (the one that the backend sees); a flow then goes on as a new session.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import socket
import sys
import time
from collections.abc import Iterator

BEAT = 1.0
LATE = 8.0  # seconds after which a connection or an answer counts as lost
IP_FREEBIND, IPV6_FREEBIND = 15, 78  # linux/in.h, linux/in6.h
REQUEST = b"GET / HTTP/1.0\r\n\r\n"


# -- the server --------------------------------------------------------------------------------------------------------


class Answer(asyncio.DatagramProtocol):
    """Answers each datagram."""

    def __init__(self, name: str):
        self._name = name

    def connection_made(self, transport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple) -> None:
        self._transport.sendto(b"%s %s %d %s" % (self._name.encode(), addr[0].encode(), addr[1], data), addr)


def bound(address: str, port: int) -> socket.socket:
    """A UDP socket on an address that the host may get later; with a wildcard, replies could leave from another."""
    if ":" in address:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    else:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    sock.bind((address, port))
    return sock


async def server(name: str, port: int, addresses: list[str]) -> None:
    """Serve for ever."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        try:
            while line := await reader.readline():
                writer.write(b"%s %s %d %s" % (name.encode(), peer[0].encode(), peer[1], line))
        except OSError:
            pass
        finally:
            writer.transport.abort()

    loop = asyncio.get_running_loop()
    for address in addresses:
        await loop.create_datagram_endpoint(lambda: Answer(name), sock=bound(address, port))
    async with await asyncio.start_server(echo, ["0.0.0.0", "::"], port, backlog=1024) as listening:
        await listening.serve_forever()


# -- the client --------------------------------------------------------------------------------------------------------


def tell(event: str, **more: object) -> None:
    """Write an event."""
    print(json.dumps({"at": time.time(), "event": event, **more}), flush=True)


async def exchange(host: str, port: int) -> None:
    """One request of a new connection; raise OSError if it is not served."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(REQUEST)
        answer = await reader.read()
        if b" 200 " not in answer[:15]:
            raise ConnectionError(f"answered {answer[:40]!r}")
    finally:
        writer.transport.abort()


def reason(error: BaseException) -> str:
    """Return the kind of failure in a word."""
    if isinstance(error, ConnectionResetError):
        return "reset"
    return "silent" if isinstance(error, (asyncio.TimeoutError, TimeoutError)) else f"{error or type(error).__name__}"


class Session:
    """A long stream or flow. ``backend`` and ``source`` are what the first answer says; empty before."""

    kind = ""

    def __init__(self, number: int, to: tuple[str, int], reopen: bool, life: float = math.inf):
        self.number, self.to, self.reopen = number, to, reopen
        self.life = life * random.uniform(1, 1.25)
        self.backend = self.source = ""
        self._began = 0.0
        self._beating: asyncio.Task | None = None

    def begun(self, backend: str, source: str) -> None:
        self.backend, self.source, self._began = backend, source, time.monotonic()
        tell("began", **self._told())

    def broken(self, how: str) -> None:
        age = round(time.monotonic() - self._began, 1) if self.backend else 0
        tell("broken", **self._told(), how=how if self.backend else f"refused: {how}", age=age)
        self.backend = self.source = ""

    def close(self) -> None:
        """End the session as a client does; a session that reopens begins anew."""
        tell("closed", **self._told())
        self.backend = self.source = ""
        if self._beating:
            self._beating.cancel()

    def _told(self) -> dict:
        return {"id": self.number, "kind": self.kind, "to": self.to[0], "port": self.to[1], "backend": self.backend}

    async def run(self) -> None:
        """Beat until the session has ended, or for ever if it reopens."""
        while True:
            self._beating = asyncio.create_task(self.beats())
            await asyncio.wait([self._beating])
            if not self.reopen:
                return
            await asyncio.sleep(BEAT)

    async def beats(self) -> None:
        raise NotImplementedError


class Stream(Session):
    """A TCP connection with one line there and back each second."""

    kind = "stream"

    async def beats(self) -> None:
        writer, beat = None, 0
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(*self.to), LATE)
            while True:
                beat += 1
                writer.write(b"%d\n" % beat)
                answer = await asyncio.wait_for(reader.readline(), LATE)
                if not answer:
                    self.broken("ended")
                    return
                backend, host, port, asked = answer.decode().split()
                if int(asked) != beat:
                    self.broken("wrong bytes")
                    return
                if not self.backend:
                    self.begun(backend, f"{host} {port}")
                await asyncio.sleep(BEAT)
                if time.monotonic() > self._began + self.life:
                    tell("closed", **self._told())
                    self.backend = self.source = ""
                    return
        except (OSError, asyncio.TimeoutError) as error:
            self.broken(reason(error))
        finally:
            if writer:
                writer.transport.abort()


class Flow(Session, asyncio.DatagramProtocol):
    """A UDP socket that asks once a second."""

    kind = "flow"

    def datagram_received(self, data: bytes, addr: tuple) -> None:
        backend, host, port, _asked = data.decode().split()
        self._answered = time.monotonic()
        source = f"{host} {port}"
        if self.backend and (backend, source) != (self.backend, self.source):
            self.broken("another port" if backend == self.backend else "another backend")
        if not self.backend:
            self.begun(backend, source)

    async def beats(self) -> None:
        loop = asyncio.get_running_loop()
        transport, _protocol = await loop.create_datagram_endpoint(lambda: self, remote_addr=self.to)
        self._answered, beat = time.monotonic(), 0
        try:
            while time.monotonic() < self._answered + LATE:
                beat += 1
                transport.sendto(b"%d" % beat)
                await asyncio.sleep(BEAT)
            self.broken("silent")
        finally:
            transport.abort()


class Load:
    """Everything that the client does."""

    def __init__(self, rate: float):
        self._rate, self._web, self._asked = rate, [], 0
        self._sessions: list[Session] = []
        self._tasks: set[asyncio.Task] = set()

    async def run(self) -> None:
        """Obey commands until there are none, and open connections at fixed times, however long each takes."""
        loop = asyncio.get_running_loop()
        lines = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        opening = self._start(self._open())
        while line := await lines.readline():
            self.obey(json.loads(line))
        opening.cancel()

    def obey(self, command: dict) -> None:
        """Do what a command says."""
        if "web" in command:
            self._web = [tuple(target) for target in command["web"]]
        elif "open" in command:
            make = {"stream": Stream, "flow": Flow}[command["open"]]
            for number in range(command["count"]):
                to = tuple(command["to"][number % len(command["to"])])
                session = make(len(self._sessions), to, command["reopen"], command.get("life") or math.inf)
                self._sessions.append(session)
                self._start(session.run())
        elif "close" in command:
            for session in list(self._matching(command)):
                session.close()

    def _matching(self, command: dict) -> Iterator[Session]:
        for session in filter(lambda session: session.backend, self._sessions):
            backend, host = command.get("backend") or session.backend, command.get("host") or session.to[0]
            if (backend, host) == (session.backend, session.to[0]):
                yield session

    async def _open(self) -> None:
        started, number = time.monotonic(), 0
        while True:
            number += 1
            await asyncio.sleep(max(0.0, started + number / self._rate - time.monotonic()))
            if self._web:
                self._start(self._connection(*self._web[number % len(self._web)]))

    async def _connection(self, host: str, port: int) -> None:
        started, error = time.monotonic(), None
        try:
            await asyncio.wait_for(exchange(host, port), LATE)
        except (OSError, asyncio.TimeoutError) as failure:
            error = reason(failure)
        tell("connection", seconds=time.monotonic() - started, error=error, to=host)

    def _start(self, work) -> asyncio.Task:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


if __name__ == "__main__":
    if sys.argv[1] == "server":
        asyncio.run(server(sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
    asyncio.run(Load(float(sys.argv[2])).run())
