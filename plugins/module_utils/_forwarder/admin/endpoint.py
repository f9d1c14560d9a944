# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small servers in the supervisor's own loop: the admin socket, and metrics over HTTP. Every client is bounded.

At most MOST_CLIENTS at a time, LARGEST_REQUEST bytes of a request, LARGEST_OUTPUT of answers that a client has not read
yet, and EXCHANGE seconds for a request and its answer, however often a byte of them moves. When all places are taken,
the client that has gone longest without an answer makes room for the next one, those that read one last. So whatever a
client does, it costs the supervisor no more than that, and keeps nobody out. While an answer waits for a client nothing
is read from it.

A large answer is given as an iterator. It is made while the client reads it, between other work of the loop; at most
MOST_STREAMS of them at a time. Over TCP an answer that is cut short ends with RST, so that nobody takes it for whole.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import selectors
import socket
import stat
import struct
from itertools import chain

from ..loop import sockets
from . import protocols, runtime_file

MOST_CLIENTS = 32
LARGEST_REQUEST = 16384  # bytes
LARGEST_OUTPUT = 8 << 20  # bytes
MOST_STREAMS = 4  # large answers under way; each keeps a status document, about 20 MB with 10,000 backends
EXCHANGE = 10.0  # seconds for a request and its answer
IDLE = 30.0  # seconds an admin client may be silent between two requests
CHUNK = 65536  # bytes
PIECES = 4  # pieces of a large answer that are sent before others have their turn
PAUSE = 1.0  # seconds without accepting where there are no descriptors

ADMIN, METRICS = "admin", "metrics"
#: What makes a handler of a function that answers, and what a request gets that is too long.
PROTOCOLS = {
    ADMIN: (protocols.line_handler, protocols.LONG_LINE),
    METRICS: (protocols.http_handler, protocols.http_error("400 Too Long")),
}


def wanted(config):
    """Return {name: kind} of the sockets ``config`` asks for; the name says where."""
    path = config.admin.socket or os.path.join(runtime_file.directory(), "admin.sock")
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
        if os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):  # a file of somebody else
            raise OSError(errno.EEXIST, path)
        os.rename(new, path)
    except OSError:
        sock.close()
        runtime_file.remove(new)
        raise
    return sock


def _has_vanished(name):
    """Whether the path of an admin socket of ours no longer leads to this process."""
    kind, _colon, path = name.partition(":")
    if kind != ADMIN:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(path)
            pid, _user, _group = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except BlockingIOError:  # somebody listens, and many wait
            return False
        except OSError:
            return True
    return pid != os.getpid()


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
    """One client of a server: what it has sent so far, and what it has not read yet.

    ``since`` is when it came, or had its last answer.
    """

    def __init__(self, server, sock):
        self._server = server
        self._sock = sock
        self._input = bytearray()
        self._output = bytearray()
        self.stream = None  # the rest of a large answer
        self._interest = 0
        self._again = False  # whether more requests may have come than were answered
        self._ending = False  # whether the connection ends when all output is out
        self._timer = None
        self.since = server.now()
        self.closed = False
        self._within(server.silence)
        self._want()

    def fileno(self):
        """Return the descriptor."""
        return self._sock.fileno()

    @property
    def answering(self):
        """Whether an answer waits for it."""
        return bool(self._output) or self.stream is not None

    def write(self, data, last=False):
        """Have ``data``, bytes or an iterator of bytes, sent; with ``last`` the connection ends after it."""
        if self.closed:
            return
        if self.stream is not None:  # an answer that took longer comes after the one under way, not into it
            self.stream = chain(self.stream, [data] if isinstance(data, bytes) else data)
        elif isinstance(data, bytes):
            self._output += data
        else:
            self._server.make_room_for_a_stream()
            self.stream = data
        self._ending = self._ending or last
        self._flush()

    def ready(self):
        """The selector's callback."""
        if self.answering:
            self._flush()
        elif self._again:
            self._serve()
        else:
            self._receive()

    def _receive(self):
        try:
            data = self._sock.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        if not self._input and self._server.lasting:
            self._within(EXCHANGE)
        self._input += data
        self._serve()

    def _serve(self):
        """Have one request answered; the next one waits until this client has its turn again."""
        self._again = self._server.handle(self, self._input)
        if self.closed:
            return
        if not self._again and len(self._input) > LARGEST_REQUEST:
            self.write(self._server.refusal, last=True)
            return
        if self._again and not self.answering:
            self._answered()
        self._want()

    def _answered(self):
        """A request is done with, and the next one may have come already."""
        self.since = self._server.now()
        if self._server.lasting:
            self._within(EXCHANGE if self._input else self._server.silence)

    def _flush(self):
        """Send what the client takes; of a large answer a few pieces."""
        try:
            for _piece in range(PIECES):
                while self._output:
                    sent = self._sock.send(memoryview(self._output)[:CHUNK])
                    del self._output[:sent]
                if self.stream is None:
                    break
                piece = next(self.stream, None)
                if piece is None:
                    self.stream = None
                else:
                    self._output += piece
        except BlockingIOError:
            if len(self._output) > LARGEST_OUTPUT:
                self.close()
                return
        except OSError:
            self.close()
            return
        if not self.answering:
            if self._ending:
                self.close()
                return
            self._answered()
        self._want()

    def _want(self):
        interest = selectors.EVENT_WRITE if self.answering or self._again else selectors.EVENT_READ
        if interest == self._interest:
            return
        if self._interest:
            self._server.selector.modify(self._sock, interest, self.ready)
        else:
            self._server.selector.register(self._sock, interest, self.ready)
        self._interest = interest

    def _within(self, seconds):
        """Have the client closed unless this is called again in time."""
        timers = self._server.timers
        if self._timer is not None:
            timers.discard(self._timer, self.close)
        self._timer = timers.add(self._server.now() + seconds, self.close)

    def close(self):
        """Be done with this client; the end of an answer that is cut short does not look like its own."""
        if self.closed:
            return
        self.closed = True
        self._server.timers.discard(self._timer, self.close)
        if self._interest:
            self._server.selector.unregister(self._sock)
        if self.answering:
            self.stream = None
            sockets.reset(self._sock)
        else:
            self._sock.close()
        self._server.clients.discard(self)


class Server:
    """One listening socket and its clients.

    ``handle(client, buffer)`` takes one request from the buffer and answers it; it returns whether it took one, so that
    there may be more. ``lasting``: whether a connection carries several requests.
    """

    def __init__(self, loop, sock, handle, refusal, lasting=True):
        self.selector, self.timers, self.now = loop.selector, loop.timers, loop.now
        self.handle = handle
        self.refusal = refusal  # of a request that is too long
        self.lasting = lasting
        self.silence = IDLE if lasting else EXCHANGE
        self.sock = sock
        self.clients = set()
        self._accepting = False
        self._accept_from_now_on()

    def _accept_from_now_on(self):
        if not self._accepting and self.sock.fileno() >= 0:
            self._accepting = True
            self.selector.register(self.sock, selectors.EVENT_READ, self._accept)

    def _accept(self):
        try:
            sock, _address = self.sock.accept()
        except OSError as error:
            if error.errno in sockets.OUT_OF:  # a client gives its descriptor back, or the next one waits
                self._make_room(self.clients)
                self._stop_accepting()
                self.timers.add(self.now() + PAUSE, self._accept_from_now_on)
            return  # else it went away again
        if len(self.clients) >= MOST_CLIENTS:
            self._make_room(self.clients)
        sock.setblocking(False)
        self.clients.add(Client(self, sock))

    def _stop_accepting(self):
        if self._accepting:
            self._accepting = False
            self.selector.unregister(self.sock)

    def make_room_for_a_stream(self):
        """A large answer is about to begin."""
        streams = [client for client in self.clients if client.stream is not None]
        if len(streams) >= MOST_STREAMS:
            self._make_room(streams)

    def _make_room(self, clients):
        """Close the one that has gone longest without an answer, and only if need be one that reads one."""
        if clients:
            min(clients, key=lambda client: (client.answering, client.since)).close()

    def descriptors(self):
        """Return every descriptor of this server."""
        return [self.sock.fileno(), *(client.fileno() for client in self.clients)]

    def end_clients(self):
        """Close all clients."""
        for client in list(self.clients):
            client.close()

    def close(self):
        """Stop serving."""
        self.end_clients()
        self._stop_accepting()
        self.sock.close()


class Endpoints:
    """The servers of the supervisor by the name of their socket; ``answers`` is {kind: what its protocol calls}."""

    def __init__(self, loop, answers):
        self._loop = loop
        self._answers = answers
        self.servers = {}

    def bind_missing(self, config):
        """Return ({name: new socket}, [Failure]) of what ``config`` wants beyond what is there."""
        bound, failures = {}, []
        for name in wanted(config):
            if name in self.servers and not _has_vanished(name):
                continue
            try:
                bound[name] = bind(name, config)
            except OSError as error:
                failures.append(Failure(name, error))
        return bound, failures

    def settle(self, config, bound):
        """Serve what ``config`` wants: the sockets ``bound`` for it and those that are there; close all others."""
        for name, sock in bound.items():
            if name in self.servers:  # nobody finds it any more
                self.servers.pop(name).close()
            self.add(name, sock)
        names = wanted(config)
        for name in [name for name in self.servers if name not in names]:
            self._remove(name)

    def add(self, name, sock):
        """Serve on a socket."""
        kind = name.partition(":")[0]
        handler, refusal = PROTOCOLS[kind]
        self.servers[name] = Server(self._loop, sock, handler(self._answers[kind]), refusal, lasting=kind == ADMIN)

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

    def end_clients(self):
        """Close all clients, as before an exec, which would end an answer as if it were whole."""
        for server in self.servers.values():
            server.end_clients()

    def listening(self):
        """Return {name: descriptor} to hand over."""
        return {name: server.sock.fileno() for name, server in self.servers.items()}

    def close(self):
        """Stop serving, and take the names of sockets out of the file system."""
        for name in list(self.servers):
            self._remove(name)

    def _remove(self, name):
        """Stop serving on a socket; its name goes with it unless it is another's by now."""
        vanished = _has_vanished(name)
        self.servers.pop(name).close()
        if name.startswith(f"{ADMIN}:") and not vanished:
            runtime_file.remove(name.partition(":")[2])
