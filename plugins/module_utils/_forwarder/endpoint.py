# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small servers in the supervisor's own loop: the admin socket, and metrics over HTTP. Every client is bounded.

At most MOST_CLIENTS at a time, LARGEST_REQUEST bytes of a request, LARGEST_OUTPUT of what a client has not read yet,
and IDLE seconds without progress: whatever a client does, it costs the supervisor no more than that. While an answer
waits for a client nothing is read from it.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import selectors
import socket

from . import runtime, sockets

MOST_CLIENTS = 32
LARGEST_REQUEST = 16384  # bytes
LARGEST_OUTPUT = 8 << 20  # bytes; metrics of 1,000 backends are about 2 MB
IDLE = 30.0  # seconds
CHUNK = 65536

ADMIN, METRICS = "admin", "metrics"


def wanted(config):
    """Return {name: kind} of the sockets ``config`` asks for; the name says where."""
    path = config.admin.socket or os.path.join(runtime.directory(), "admin.sock")
    names = {f"{ADMIN}:{path}": ADMIN}
    if config.metrics.listen:
        names[f"{METRICS}:{config.metrics.listen}"] = METRICS
    return names


def bind(name, config):
    """Return the listening socket of a wanted() name; raise OSError."""
    kind, _colon, where = name.partition(":")
    if kind == ADMIN:
        return _bind_path(where, config.admin.group)
    return sockets.listening_socket(*config.metrics.endpoint, backlog=MOST_CLIENTS, shared=False)


def _bind_path(path, group):
    """Bind a socket of mode 0660; it appears under its name only when its mode and group are right."""
    new = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind(new)
        os.chmod(new, 0o660)
        if group is not None:
            os.chown(new, -1, _group_id(group))
        sock.listen(MOST_CLIENTS)
        os.rename(new, path)
    except OSError:
        sock.close()
        raise
    return sock


def _group_id(group):
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise OSError(errno.ENOENT, f"there is no group {group}") from None


class Failure:
    """A socket that cannot be had, as a sentence."""

    def __init__(self, name, error):
        self.kind, _colon, where = name.partition(":")
        self.sentence = f"{self.kind}: cannot listen on {where}: {sockets.describe(error)}"


class Client:
    """One client of a server: what it has sent so far, and what it has not read yet."""

    def __init__(self, server, sock):
        self._server = server
        self._sock = sock
        self._input = bytearray()
        self._output = bytearray()
        self._interest = 0
        self._ending = False  # whether the connection ends when all output is out
        self._timer = None
        self.closed = False
        self._progress()
        self._want()

    def fileno(self):
        """Return the descriptor."""
        return self._sock.fileno()

    def write(self, data, last=False):
        """Have ``data`` sent; with ``last`` the connection ends after it."""
        if self.closed:
            return
        self._output += data
        self._ending = self._ending or last
        self._flush()

    def ready(self):
        """The selector's callback."""
        if self._output:
            self._flush()
            return
        try:
            data = self._sock.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._progress()
        self._input += data
        self._server.handle(self, self._input)
        if not self.closed and len(self._input) > LARGEST_REQUEST:
            self._server.refuse(self)

    def _flush(self):
        if len(self._output) > LARGEST_OUTPUT:
            self.close()
            return
        try:
            while self._output:
                sent = self._sock.send(memoryview(self._output)[:CHUNK])
                del self._output[:sent]
                self._progress()
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._ending and not self._output:
            self.close()
            return
        self._want()

    def _want(self):
        interest = selectors.EVENT_WRITE if self._output else selectors.EVENT_READ
        if interest == self._interest:
            return
        if self._interest:
            self._server.selector.modify(self._sock, interest, self.ready)
        else:
            self._server.selector.register(self._sock, interest, self.ready)
        self._interest = interest

    def _progress(self):
        wheel, now = self._server.wheel, self._server.now
        if self._timer is not None:
            wheel.discard(self._timer, self.close)
        self._timer = wheel.add(now() + IDLE, self.close)

    def close(self):
        """Be done with this client."""
        if self.closed:
            return
        self.closed = True
        self._server.wheel.discard(self._timer, self.close)
        if self._interest:
            self._server.selector.unregister(self._sock)
        self._sock.close()
        self._server.clients.discard(self)


class Server:
    """One listening socket and its clients. ``handle(client, buffer)`` takes from the buffer what it can use."""

    def __init__(self, loop, sock, handle, refusal):
        self.selector, self.wheel, self.now = loop.selector, loop.wheel, loop.now
        self.handle = handle
        self._refusal = refusal
        self.sock = sock
        self.clients = set()
        self.selector.register(sock, selectors.EVENT_READ, self._accept)

    def _accept(self):
        try:
            sock, _address = self.sock.accept()
        except OSError:  # none is left, or no descriptor: the next turn tries again
            return
        if len(self.clients) >= MOST_CLIENTS:
            sock.close()
            return
        sock.setblocking(False)
        self.clients.add(Client(self, sock))

    def refuse(self, client):
        """End a client whose request is too long."""
        client.write(self._refusal, last=True)

    def descriptors(self):
        """Return every descriptor of this server."""
        return [self.sock.fileno(), *(client.fileno() for client in self.clients)]

    def close(self):
        """Stop serving."""
        for client in list(self.clients):
            client.close()
        self.selector.unregister(self.sock)
        self.sock.close()


class Endpoints:
    """The servers of the supervisor by the name of their socket; ``handlers`` is {kind: (handle, refusal)}."""

    def __init__(self, loop, handlers):
        self._loop = loop
        self._handlers = handlers
        self.servers = {}

    def bind_missing(self, config):
        """Return ({name: new socket}, [Failure]) of what ``config`` wants beyond what is there."""
        bound, failures = {}, []
        for name in wanted(config):
            if name in self.servers:
                continue
            try:
                bound[name] = bind(name, config)
            except OSError as error:
                failures.append(Failure(name, error))
        return bound, failures

    def settle(self, config, bound):
        """Serve what ``config`` wants: the sockets ``bound`` for it and those that are there; close all others."""
        for name, sock in bound.items():
            self.add(name, sock)
        names = wanted(config)
        for name in [name for name in self.servers if name not in names]:
            self.servers.pop(name).close()
            if name.startswith(f"{ADMIN}:"):
                runtime.remove(name.partition(":")[2])

    def add(self, name, sock):
        """Serve on a socket."""
        self.servers[name] = Server(self._loop, sock, *self._handlers[name.partition(":")[0]])

    def adopt(self, numbers):
        """Serve on sockets inherited over exec: {name: descriptor}."""
        for name, number in numbers.items():
            sock = socket.socket(fileno=number)
            sock.set_inheritable(False)
            sock.setblocking(False)
            self.add(name, sock)

    def descriptors(self):
        """Return every descriptor a forked child must not keep."""
        return [number for server in self.servers.values() for number in server.descriptors()]

    def listening(self):
        """Return {name: descriptor} to hand over."""
        return {name: server.sock.fileno() for name, server in self.servers.items()}

    def close(self):
        """Stop serving, and take the names of sockets out of the file system."""
        for name, server in self.servers.items():
            server.close()
            if name.startswith(f"{ADMIN}:"):
                runtime.remove(name.partition(":")[2])
        self.servers.clear()


def line_handler(answer):
    """Return a handle(client, buffer) that calls ``answer(client, line)`` for each complete line."""

    def handle(client, buffer):
        while not client.closed:
            line, newline, _rest = buffer.partition(b"\n")
            if not newline:
                return
            del buffer[: len(line) + 1]
            answer(client, bytes(line))

    return handle


def http_handler(answer):
    """Return a handle(client, buffer) for HTTP/1.0: ``answer(path)`` gives (status, content type, body)."""

    def handle(client, buffer):
        if b"\r\n\r\n" not in buffer and b"\n\n" not in buffer:
            return
        parts = bytes(buffer).split(b"\r\n", 1)[0].split()
        buffer.clear()
        client.write(_response(parts, answer), last=True)

    return handle


def _response(parts, answer):
    if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
        return http_error("400 Bad Request")
    if parts[0] not in (b"GET", b"HEAD"):
        return http_error("405 Method Not Allowed")
    status, kind, body = answer(parts[1].partition(b"?")[0].decode("latin-1"))
    head = f"HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode("ascii") + (b"" if parts[0] == b"HEAD" else body)


def http_error(status):
    """Return a whole response without a body."""
    return f"HTTP/1.0 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode("ascii")
