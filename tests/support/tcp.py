# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP connections, listeners and servers on the hosts of a lab."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterable

from tests.lab.netns import NamespaceLab
from tests.support.addresses import AF, FAMILIES, address_of
from tests.support.waiting import PATIENCE


def connect(lab: NamespaceLab, address: str, port: int, host: str = "client", timeout: float = PATIENCE):
    """A TCP socket connected from a host of the lab."""
    with lab[host].inside():
        return socket.create_connection((address, port), timeout=timeout)


def refused(lab: NamespaceLab, port: int) -> bool:
    """Whether proxy a refuses a connection to this port of its IPv4 address."""
    try:
        connect(lab, lab["a"].ipv4, port).close()
    except ConnectionRefusedError:
        return True
    return False


def listen(lab: NamespaceLab, host: str, port: int, family: str = "ipv4") -> socket.socket:
    """A TCP listener of a lab host on its address of a family."""
    with lab[host].inside():
        listener = socket.create_server((address_of(lab[host], family), port), family=AF[family], backlog=512)
    listener.settimeout(PATIENCE)
    return listener


@contextlib.contextmanager
def serving(lab: NamespaceLab, hosts: Iterable[str], port: int, handle: Callable[[socket.socket, tuple], None]):
    """On each host, in both families: call ``handle(connection, peer)`` for one connection after another.

    Errors of a connection are ignored: its client may be gone already.
    """

    def serve(listener: socket.socket) -> None:
        listener.settimeout(None)
        with contextlib.suppress(OSError):  # shut down below
            while True:
                sock, peer = listener.accept()
                with contextlib.suppress(OSError):
                    handle(sock, peer)

    listeners = [listen(lab, host, port, family) for host in hosts for family in FAMILIES]
    threads = [threading.Thread(target=serve, args=(listener,), daemon=True) for listener in listeners]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for listener in listeners:
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            listener.close()
        for thread in threads:
            thread.join(PATIENCE)


def answering(lab: NamespaceLab, hosts: Iterable[str], port: int):
    """A server that answers with the address and port a connection came from, and closes it."""

    def answer(sock: socket.socket, peer: tuple) -> None:
        with sock:
            sock.sendall(f"{peer[0]} {peer[1]}".encode("ascii"))

    return serving(lab, hosts, port, answer)


@contextlib.contextmanager
def refusing(lab: NamespaceLab, host: str, port: int):
    """Let a host's firewall refuse a port with RST, as if nothing listened."""
    rule = f"type filter hook input priority 0\ntcp dport {port} reject with tcp reset"
    ruleset = f"table inet refusing {{\nchain in {{\n{rule}\n}}\n}}\n"
    lab[host].run(["nft", "-f", "-"], input=ruleset)
    try:
        yield
    finally:
        lab[host].run(["nft", "delete", "table", "inet", "refusing"])


def accept(listener: socket.socket) -> socket.socket:
    sock, _address = listener.accept()
    sock.settimeout(PATIENCE)
    return sock


def pair(lab: NamespaceLab, listener: socket.socket, port: int) -> tuple[socket.socket, socket.socket]:
    """(client's socket, backend's socket) of a connection through a, over which one byte was sent.

    It is of the listener's family.
    """
    family = "ipv6" if listener.family == socket.AF_INET6 else "ipv4"
    client = connect(lab, address_of(lab["a"], family), port)
    client.sendall(b"?")
    server = accept(listener)
    assert server.recv(1) == b"?"
    return client, server


@contextlib.contextmanager
def connection(lab: NamespaceLab, listener: socket.socket, port: int):
    """A :func:`pair` that is closed at the end."""
    client, server = pair(lab, listener, port)
    with client, server:
        yield client, server


def assert_open(client: socket.socket, server: socket.socket) -> None:
    """Assert that data of the client reaches the server."""
    client.sendall(b"still here")
    assert server.recv(100) == b"still here"


def get(lab: NamespaceLab, address: str, port: int, timeout: float = PATIENCE) -> bytes:
    """The body of one HTTP/1.0 request from the client; raises OSError."""
    with connect(lab, address, port, timeout=timeout) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return receive_all(sock).partition(b"\r\n\r\n")[2]


def receive_all(sock: socket.socket) -> bytes:
    """Everything until EOF."""
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
