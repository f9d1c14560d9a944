# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a worker transfers its UDP sessions to the worker that replaces it at a reload.

The supervisor makes a socket pair for each worker. The worker has one end; the other is inherited by its successor when
that is forked. Once the new generation serves, the old worker stops reading and sends: a message with a memfd that
holds the JSON document below; its upstream sockets, MOST_AT_ONCE in a message; end of file. The successor reads no
datagram before that. They wait in the sockets, which both processes have, so none is lost or reordered. End of file
without a document means that the predecessor died: there is nothing to take over.

The keys are a protocol between versions. A ``lane`` is an upstream socket, a ``door`` the name of a listener:

{"schema": 1, "lanes": [{"shared", "owner": [address, port] or null}],
 "flows": [{"lane": index, "door", "service", "backend", "client": [...], "local": hex or null, "source": hex,
   "target": [...], "step", "answered", "started" (monotonic seconds), "datagrams_to_backend", "datagrams_to_client",
   "bytes_to_backend", "bytes_to_client", "counted": [bytes to the backend, to the client]}]}

The predecessor counts what its flows have forwarded in its own generation; those bytes are ``counted``, and the others
are none. A worker of an earlier version counts a session only at its end. It sends all bytes of a flow without
``counted``, and a successor of such a version counts all that it gets.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Callable

SCHEMA = 1
MOST_AT_ONCE = 250  # descriptors in a message; the kernel's bound is 253 (SCM_MAX_FD)
LONGEST_SEND = 10.0  # seconds that the successor has to read what does not fit into the socket pair

# Attributes of a flow, under the same names.
_COPIED = ("step", "answered", "started", "datagrams_to_backend", "datagrams_to_client")


def send(sock: socket.socket, upstreams, flows) -> None:
    """Send upstream sockets and flows to the successor; raise OSError."""
    upstreams = list(upstreams)
    numbers = {upstream: number for number, upstream in enumerate(upstreams)}
    document = {
        "schema": SCHEMA,
        "lanes": [{"shared": not upstream.alone, "owner": upstream.owner} for upstream in upstreams],
        "flows": [_record(flow, numbers[flow.upstream]) for flow in flows],
    }
    sock.settimeout(LONGEST_SEND)
    memory = os.memfd_create("l4proxy-sessions", os.MFD_CLOEXEC)
    try:
        with open(memory, "w", encoding="ascii", closefd=False) as stream:
            stream.write(json.dumps(document))  # json.dump() would encode in Python: ten times slower
        socket.send_fds(sock, [b"document"], [memory])
    finally:
        os.close(memory)
    descriptors = [upstream.sock.fileno() for upstream in upstreams]
    for first in range(0, len(descriptors), MOST_AT_ONCE):
        socket.send_fds(sock, [b"sockets"], descriptors[first : first + MOST_AT_ONCE])


def _record(flow, upstream_number):
    client, local = (flow.client, None) if flow.client_key == flow.client else flow.client_key
    return {
        "lane": upstream_number,
        "door": flow.listener.name,
        "service": flow.service.name,
        "backend": flow.backend.name,
        "client": client,
        "local": local.hex() if local else None,
        "source": flow.reply_key[0].hex(),
        "target": flow.target,
        **{name: getattr(flow, name) for name in _COPIED},
        "bytes_to_backend": 0,
        "bytes_to_client": 0,
        "counted": [flow.bytes_to_backend, flow.bytes_to_client],
    }


def client_of(record: dict) -> tuple[tuple, tuple]:
    """Return (address tuple of the client, its key at its listener) of a flow's record."""
    client = tuple(record["client"])
    return client, client if record["local"] is None else (client, bytes.fromhex(record["local"]))


def restore(flow, record: dict) -> None:
    """Set the attributes of a new flow that its record holds; its idle timeout begins now."""
    for name in _COPIED:
        setattr(flow, name, record[name])
    flow.bytes_to_backend, flow.bytes_to_client = record["bytes_to_backend"], record["bytes_to_client"]
    if "counted" in record:
        to_backend, to_client = record["counted"]
        flow.bytes_to_backend += to_backend
        flow.bytes_to_client += to_client
        flow.counted = to_backend, to_client, flow.datagrams_to_backend, flow.datagrams_to_client
    flow.datagrams_seen = flow.datagrams


class Receiver:
    """Reads what a predecessor sends; calls ``done(receiver, document or None, sockets)`` once, at the end."""

    def __init__(self, sock: socket.socket, done: Callable) -> None:
        self.sock = sock
        self._done = done
        self._document: dict | None = None
        self._sockets: list[socket.socket] = []

    def ready(self, _mask: int) -> None:
        """The poller's callback: a message, or the end of file."""
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
    def complete(self) -> bool:
        """Whether everything has arrived."""
        return self._document is not None and len(self._sockets) >= len(self._document["lanes"])

    def finish(self) -> None:
        """Wait no longer; an incomplete handover counts as none."""
        if self.complete and self._document and self._document.get("schema") == SCHEMA:
            self._done(self, self._document, self._sockets)
            return
        for sock in self._sockets:
            sock.close()
        self._done(self, None, ())
