# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP connections, listeners and servers on the hosts of a lab."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from tests.lab.netns import NamespaceLab
from tests.support.waiting import PATIENCE


def connect(lab: NamespaceLab, address: str, port: int, host: str = "client", timeout: float = PATIENCE):
    """A connected TCP socket of a lab host, usable from anywhere."""
    with lab[host].inside():
        return socket.create_connection((address, port), timeout=timeout)


def listen(lab: NamespaceLab, host: str, port: int, family: str = "ipv4") -> socket.socket:
    """A TCP listener of a lab host on its address of a family."""
    kind = socket.AF_INET6 if family == "ipv6" else socket.AF_INET
    with lab[host].inside():
        listener = socket.create_server((getattr(lab[host], family), port), family=kind, backlog=512)
    listener.settimeout(PATIENCE)
    return listener


@contextlib.contextmanager
def answering(lab: NamespaceLab, hosts, port: int):
    """On each host, in both families: answer a connection with the address and port it came from, and close it."""
    listeners = []
    for host in hosts:
        for address in (lab[host].ipv4, lab[host].ipv6):
            with lab[host].inside():
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                listeners.append(socket.create_server((address, port), family=family, backlog=512))

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                sock, peer = listener.accept()
            except OSError:
                return  # shut down below
            with sock, contextlib.suppress(OSError):  # a client may be gone already
                sock.sendall(f"{peer[0]} {peer[1]}".encode("ascii"))

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


@contextlib.contextmanager
def refusing(lab: NamespaceLab, host: str, port: int):
    """A host whose firewall refuses a port with RST, as if nobody listened."""
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
    """(client's socket, backend's socket) of one connection through a; one byte was exchanged to prove it.

    It is of the listener's family.
    """
    client = connect(lab, lab["a"].ipv6 if listener.family == socket.AF_INET6 else lab["a"].ipv4, port)
    client.sendall(b"?")
    server = accept(listener)
    assert server.recv(1) == b"?"
    return client, server


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
