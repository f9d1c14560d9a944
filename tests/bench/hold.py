# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Idle connections, both ends.

python hold.py server ADDRESS PORT, and python hold.py client ADDRESS PORT COUNT [SOURCE...].

The client takes its SOURCE addresses in turn: ports of the last peer are still in TIME-WAIT when the next is asked. It
says "holding COUNT" once every connection has carried a byte both ways, and closes them at the end of its standard
input.
"""

from __future__ import annotations

import itertools
import selectors
import socket
import sys


def server(address: str, port: int) -> None:
    """Accept for ever; answer whatever comes with itself."""
    selector = selectors.DefaultSelector()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family, backlog=4096)
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _mask in selector.select():
            if key.fileobj is listener:
                connection = listener.accept()[0]
                connection.setblocking(False)
                selector.register(connection, selectors.EVENT_READ)
                continue
            try:
                data = key.fileobj.recv(64)
                if data:
                    key.fileobj.send(data)
            except OSError:
                data = b""
            if not data:
                selector.unregister(key.fileobj)
                key.fileobj.close()


def client(address: str, port: int, count: int, sources: list[str]) -> None:
    """Hold ``count`` connections until standard input ends."""
    held, bound = [], itertools.cycle([(source, 0) for source in sources] or [None])
    while len(held) < count:
        batch = [
            socket.create_connection((address, port), timeout=20, source_address=next(bound))
            for _one in range(min(100, count - len(held)))
        ]
        for connection in batch:
            connection.sendall(b"?")
        for connection in batch:
            if connection.recv(1) != b"?":
                raise ConnectionError(f"closed after {len(held)} connections")
        held += batch
    print(f"holding {count}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    if sys.argv[1] == "server":
        server(sys.argv[2], int(sys.argv[3]))
    try:
        client(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
    except OSError as error:
        sys.exit(f"failed: {error!r}")
