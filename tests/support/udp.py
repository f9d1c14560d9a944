# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""UDP servers that answer with the client's address, and clients that repeat their requests."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import defaultdict

from tests.support.addresses import family_of
from tests.support.forwarding import BACKENDS
from tests.support.waiting import PATIENCE

QUESTION = b"?"  # answered with the server's name and the client's address; other datagrams are echoed
AGAIN = 0.5  # seconds after which a client repeats a datagram, as UDP may lose it
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
QUIET = 0.5  # seconds without an answer that count as silence; answers take a millisecond


class Server:
    """A UDP server of a host on both its addresses; ``seen`` is {(address, port) of a client: [sizes]}.

    While ``says`` is set, it is the answer to everything; b"" means no answer.
    """

    def __init__(self, lab, host: str, port: int):
        self.name = host
        self.seen = defaultdict(list)
        self.says: bytes | None = None
        self._stop = threading.Event()
        self._threads = []
        for address in (lab[host].ipv4, lab[host].ipv6):
            with lab[host].inside():
                sock = socket.socket(family_of(address), socket.SOCK_DGRAM)
            sock.bind((address, port))
            sock.settimeout(0.1)
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
            self._threads.append(threading.Thread(target=self._serve, args=(sock,), daemon=True))
        for thread in self._threads:
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            while not self._stop.is_set():
                try:
                    data, peer = sock.recvfrom(65536)
                except TimeoutError:
                    continue
                self.seen[peer[:2]].append(len(data))
                if self.says is not None:
                    data = self.says
                elif data.startswith(QUESTION):
                    data = f"{self.name} {peer[0]} {peer[1]}".encode()
                if self.says != b"":
                    sock.sendto(data, peer)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)


@contextlib.contextmanager
def serving(lab, port: int, hosts=BACKENDS):
    """Servers, by host."""
    servers = {host: Server(lab, host, port) for host in hosts}
    try:
        yield servers
    finally:
        for server in servers.values():
            server.stop()


def client(lab, address: str, port: int = 0, host: str = "client") -> socket.socket:
    """An unconnected socket of a host, in the family of ``address``."""
    with lab[host].inside():
        sock = socket.socket(family_of(address), socket.SOCK_DGRAM)
    sock.bind(("", port))
    return sock


def exchange(sock: socket.socket, data: bytes, to: tuple[str, int], patience: float = PATIENCE):
    """Send until there is an answer; return (answer, its source)."""
    deadline = time.monotonic() + patience
    sock.settimeout(AGAIN)
    while True:
        sock.sendto(data, to)
        try:
            answer, source = sock.recvfrom(65536)
            return answer, source[:2]
        except TimeoutError:
            assert time.monotonic() < deadline, f"no answer from {to} within {patience:g} s"


def who(sock: socket.socket, to: tuple[str, int], patience: float = PATIENCE) -> tuple[str, str, int]:
    """(backend, client's address, client's port), as the backend sees them."""
    name, address, port = exchange(sock, QUESTION, to, patience)[0].decode().split()
    return name, address, int(port)


def silent(sock: socket.socket, data: bytes, to: tuple[str, int]) -> bool:
    """Whether a datagram is not answered."""
    sock.settimeout(QUIET)
    sock.sendto(data, to)
    try:
        sock.recvfrom(65536)
    except TimeoutError:
        return True
    return False


def settle(sock: socket.socket) -> None:
    """Read until no more datagrams arrive."""
    sock.settimeout(QUIET)
    with contextlib.suppress(TimeoutError):
        while True:
            sock.recv(65536)
