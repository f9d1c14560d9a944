# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The admin server and the metrics server, which run in the supervisor's event loop.

Every cost of a client is bounded: connections by MAX_CONNECTIONS per server, large answers by MAX_STREAMS, and input,
output and time by connection.py. When all connections are in use, a new client replaces the one that has waited longest
since its last answer, and one that is reading an answer only if there is no other. So no client can lock others out.

A large answer is an iterator, evaluated while the client reads it.
"""

from __future__ import annotations

import selectors
import socket

from ..._shared import promise
from ..loop import sockets
from . import listening, protocols, runtime_file
from .connection import EXCHANGE_TIMEOUT, Connection
from .listening import ADMIN, METRICS, BindError

MAX_CONNECTIONS = 32  # of one server
MAX_STREAMS = 4  # large answers at a time; each keeps a status document, about 20 MB with 10,000 backends
IDLE_TIMEOUT = 30.0  # seconds an admin client may be silent between two requests
ACCEPT_PAUSE = 1.0  # seconds without accepting when there are no file descriptors left

#: By kind of server: what makes a handler of the function that answers, and the answer to a request that is too long.
PROTOCOLS = {
    ADMIN: (protocols.line_handler, protocols.LONG_LINE),
    METRICS: (protocols.http_handler, protocols.http_error("400 Too Long")),
}


class Server:
    """One listening socket and its connections.

    ``handle(connection, buffer)`` takes one request from the buffer and answers it; it returns whether there was one.
    ``refusal`` is the answer to a request that is too long. ``keeps_connections``: whether a connection carries several
    requests.
    """

    def __init__(self, loop, sock, handle, refusal, keeps_connections=True):
        self.selector, self.timers, self.now = loop.selector, loop.timers, loop.now
        self.handle = handle
        self.refusal = refusal
        self.keeps_connections = keeps_connections
        self.idle_timeout = IDLE_TIMEOUT if keeps_connections else EXCHANGE_TIMEOUT
        self.sock = sock
        self.connections = set()
        self._accepting = False
        self._start_accepting()

    def _start_accepting(self):
        if not self._accepting and self.sock.fileno() >= 0:
            self._accepting = True
            self.selector.register(self.sock, selectors.EVENT_READ, self._accept)

    def _accept(self):
        try:
            sock, _address = self.sock.accept()
        except OSError as error:
            if error.errno in sockets.OUT_OF_RESOURCES:  # closing a connection frees a descriptor for the next one
                self._close_one(self.connections)
                self._stop_accepting()
                self.timers.add(self.now() + ACCEPT_PAUSE, self._start_accepting)
            return  # any other error: the client has disconnected
        if len(self.connections) >= MAX_CONNECTIONS:
            self._close_one(self.connections)
        sock.setblocking(False)
        self.connections.add(Connection(self, sock))

    def _stop_accepting(self):
        if self._accepting:
            self._accepting = False
            self.selector.unregister(self.sock)

    def make_room_for_stream(self):
        """Close a connection if MAX_STREAMS large answers are being sent."""
        streams = [connection for connection in self.connections if connection.stream is not None]
        if len(streams) >= MAX_STREAMS:
            self._close_one(streams)

    def _close_one(self, connections):
        """Close the connection that has waited longest since its last answer, preferably one that is not reading."""
        if connections:
            min(connections, key=lambda connection: (connection.answering, connection.since)).close()

    def descriptors(self):
        """Return all file descriptors of this server."""
        return [self.sock.fileno(), *(connection.fileno() for connection in self.connections)]

    def close_connections(self):
        """Close all connections."""
        for connection in list(self.connections):
            connection.close()

    def close(self):
        """Stop serving."""
        self.close_connections()
        self._stop_accepting()
        self.sock.close()


class Servers:
    """The supervisor's servers by the name of their socket (listening.py).

    ``answers`` is {kind: the function that answers requests, as its handler in protocols.py calls it}.
    """

    def __init__(self, loop, answers):
        self._loop = loop
        self._answers = answers
        self.servers = {}

    def bind_missing(self, config):
        """Return ({name: new socket}, [BindError]) of the sockets that ``config`` asks for and that are not open."""
        bound, errors = {}, []
        for name in listening.names(config):
            if name in self.servers and not listening.is_lost(name):
                continue
            try:
                bound[name] = listening.bind(name, config)
            except BindError as error:
                errors.append(error)
        return bound, errors

    def settle(self, config, bound):
        """Serve exactly the sockets that ``config`` asks for: those open already and the new ones in ``bound``."""
        for name, sock in bound.items():
            if name in self.servers:  # the old socket is lost: no client can find it
                self.servers.pop(name).close()
            self.add(name, sock)
        names = listening.names(config)
        for name in [name for name in self.servers if name not in names]:
            self._remove(name)

    def open(self, config):
        """Serve what ``config`` asks for, as far as it can be bound."""
        self.settle(config, self.bind_missing(config)[0])

    def add(self, name, sock):
        """Serve on a listening socket."""
        kind = listening.kind_of(name)
        make_handler, refusal = PROTOCOLS[kind]
        handle = make_handler(self._answers[kind])
        self.servers[name] = Server(self._loop, sock, handle, refusal, keeps_connections=kind == ADMIN)

    def adopt(self, numbers):
        """Serve on sockets inherited over exec: {name: file descriptor}."""
        for name, number in numbers.items():
            sock = socket.socket(fileno=number)
            sock.set_inheritable(False)
            sock.setblocking(False)
            self.add(name, sock)

    def descriptors(self):
        """Return the file descriptors that a forked child must close."""
        return [number for server in self.servers.values() for number in server.descriptors()]

    def close_connections(self):
        """Close all connections. Do this before an exec, which would make an incomplete answer look complete."""
        for server in self.servers.values():
            server.close_connections()

    def close_streams(self):
        """Close the connections whose large answer is not complete; it reads memory that will be closed."""
        for server in self.servers.values():
            for connection in [one for one in server.connections if one.stream is not None]:
                connection.close()

    def listening(self):
        """Return {name: file descriptor} of the listening sockets, for the handover."""
        return {name: server.sock.fileno() for name, server in self.servers.items()}

    def close(self):
        """Stop serving and remove the paths of the sockets."""
        for name in list(self.servers):
            self._remove(name)

    def _remove(self, name):
        """Stop serving on a socket and remove its path, unless the path belongs to another process by now."""
        path = None if listening.is_lost(name) else listening.path_of(name)
        self.servers.pop(name).close()
        if path is not None:
            runtime_file.remove(path)
            runtime_file.remove(path + promise.SUFFIX)
