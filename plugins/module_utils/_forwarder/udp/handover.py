# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a worker leaves its UDP sessions to the one that takes its place at a reload.

The supervisor gives each worker one end of a socket pair, its *estate*, and keeps the other, which the successor
inherits when it is forked. When the new generation serves, the old worker stops reading and writes: a message with a
memfd that holds the JSON document below, then its upstream sockets, MOST_AT_ONCE in a message, and then the end. The
successor reads no datagram before that: they wait in the sockets, which both have, so none is lost or out of order. The
end of the estate without a document means that the predecessor died, and then there is nothing to wait for.

{"schema": 1, "lanes": [{"shared", "owner": [address, port] or null}],
 "flows": [{"lane": index, "door", "service", "backend", "client": [...], "local": hex or null, "source": hex,
   "target": [...], "step", "answered", "started" (monotonic seconds), COUNTERS...}]}
"""

from __future__ import annotations

import json
import os
import socket

from ..loop.poller import READ

SCHEMA = 1
MOST_AT_ONCE = 250  # descriptors of a message; the kernel's bound is 253 (SCM_MAX_FD)
PATIENCE = 10.0  # seconds for the successor to take what does not fit into the socket pair
LONGEST = 20.0  # seconds a worker waits for its predecessors, which serve while the others of its generation start

_COUNTERS = ("datagrams_to_backend", "datagrams_to_client", "bytes_to_backend", "bytes_to_client")
_AS_IS = ("step", "answered", "started", *_COUNTERS)


def leave(estate, lanes, flows):
    """Write lanes and flows to ``estate``, a socket; raise OSError."""
    lanes = list(lanes)
    numbers = {lane: number for number, lane in enumerate(lanes)}
    document = {
        "schema": SCHEMA,
        "lanes": [{"shared": lane.shared, "owner": lane.owner} for lane in lanes],
        "flows": [_record(flow, numbers[flow.lane]) for flow in flows],
    }
    estate.settimeout(PATIENCE)
    memory = os.memfd_create("l4proxy-sessions", os.MFD_CLOEXEC)
    try:
        with open(memory, "w", encoding="ascii", closefd=False) as stream:
            stream.write(json.dumps(document))  # json.dump() would encode in Python, ten times as long
        socket.send_fds(estate, [b"document"], [memory])
    finally:
        os.close(memory)
    descriptors = [lane.sock.fileno() for lane in lanes]
    for first in range(0, len(descriptors), MOST_AT_ONCE):
        socket.send_fds(estate, [b"sockets"], descriptors[first : first + MOST_AT_ONCE])


def _record(flow, lane):
    client, local = (flow.client, None) if flow.origin == flow.client else flow.origin
    return {
        "lane": lane,
        "door": flow.door.name,
        "service": flow.service.name,
        "backend": flow.backend.name,
        "client": client,
        "local": local.hex() if local else None,
        "source": flow.reply[0].hex(),
        "target": flow.target,
        **{name: getattr(flow, name) for name in _AS_IS},
    }


def origin_of(record):
    """Return (client, key of the client at its door) of a flow's record."""
    client = tuple(record["client"])
    return client, client if record["local"] is None else (client, bytes.fromhex(record["local"]))


def restore(flow, record):
    """Give a new flow what its record tells; it counts as seen when it was made."""
    for name in _AS_IS:
        setattr(flow, name, record[name])
    flow.seen = flow.datagrams


class Heir:
    """Reads what a predecessor leaves at ``sock``; ``done(document or None, sockets)`` is called once, at the end."""

    def __init__(self, sock, done):
        self.sock = sock
        self._done = done
        self._document = None
        self._sockets = []

    def ready(self, _mask):
        """The poller's callback: something was written, or that was all."""
        data, descriptors, _flags, _address = socket.recv_fds(self.sock, 64, MOST_AT_ONCE)
        for number in descriptors:
            os.set_inheritable(number, False)
        if data == b"document":
            with open(descriptors[0], encoding="ascii") as stream:
                stream.seek(0)
                self._document = json.load(stream)
        elif data:
            self._sockets += [socket.socket(fileno=number) for number in descriptors]
        if not data or self.complete:
            self.finish()

    @property
    def complete(self):
        """Whether everything is there."""
        return self._document is not None and len(self._sockets) >= len(self._document["lanes"])

    def finish(self):
        """Wait no longer; what is not complete counts as nothing."""
        if self.complete and self._document.get("schema") == SCHEMA:
            self._done(self, self._document, self._sockets)
            return
        for sock in self._sockets:
            sock.close()
        self._done(self, None, ())


class Succession:
    """Waits for what all ``predecessors`` (estates) of a worker leave, then has it read datagrams."""

    def __init__(self, worker, predecessors):
        self._worker = worker
        self._waiting = {Heir(sock, self._done) for sock in predecessors}
        for heir in self._waiting:
            worker.selector.register(heir.sock, READ, heir.ready)
        if self._waiting:
            worker.timers.add(worker.now() + LONGEST, self._too_long)
        else:
            worker.udp.set_receiving(True)

    def _done(self, heir, document, socks):
        worker = self._worker
        worker.selector.unregister(heir.sock)
        heir.sock.close()
        self._waiting.discard(heir)
        if document is not None:
            worker.udp.take_over(document, socks)
        if not self._waiting and not worker.draining:
            worker.udp.set_receiving(True)

    def _too_long(self):
        if self._waiting:
            self._worker.log.event("no sessions taken over", level="error", reason=f"nothing came for {LONGEST:g} s")
        for heir in list(self._waiting):
            heir.finish()
