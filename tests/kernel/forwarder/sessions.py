# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sessions over TCP or UDP that stay open, for tests that run over both."""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import threading
from collections import Counter

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop import sockets

from tests.support import tcp, udp
from tests.support.addresses import FAMILIES, family_of
from tests.support.waiting import PATIENCE

#: For what is above the address and the same over TCP and UDP: each protocol with one family.
each_once = pytest.mark.parametrize(("protocol", "family"), [("tcp", "ipv4"), ("udp", "ipv6")])

#: Every address of these networks is the client's.
MANY = {"ipv4": "198.18.128.0/20", "ipv6": "2001:db8:2:8000::/64"}
CLIENTS = {"ipv4": "198.18.128.{}", "ipv6": "2001:db8:2:8000::{:x}"}


def give_many_addresses(lab) -> None:
    """Give the client every address of MANY, with a route from the router."""
    for family, network in MANY.items():
        flag = "-6" if family == "ipv6" else "-4"
        lab["client"].run(["ip", flag, "route", "add", "local", network, "dev", "lo"])
        lab["router"].run(["ip", flag, "route", "add", network, "via", getattr(lab["client"], family)])


class TcpServer:
    """On both addresses of a host: send the host's name, and keep the connection until the client closes it.

    With ``says`` it sends that in place of its name (b"": nothing).
    """

    def __init__(self, lab, host: str, port: int):
        self.says: bytes | None = None
        self._name = host.encode()
        self._socks: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        self._listeners = [tcp.listen(lab, host, port, family) for family in FAMILIES]
        for listener in self._listeners:
            self._enter(listener)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _enter(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socks[sock.fileno()] = sock
        self._poll.register(sock, select.EPOLLIN)

    def _serve(self) -> None:
        while not self._stop.is_set():
            for number, _mask in self._poll.poll(0.1):
                sock = self._socks[number]
                if sock in self._listeners:
                    self._greet(sock)
                elif self._over(sock):
                    del self._socks[number]
                    sock.close()

    def _greet(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # a health check is gone at once
            sock = listener.accept()[0]
            self._enter(sock)
            sock.send(self._name if self.says is None else self.says)

    @staticmethod
    def _over(sock: socket.socket) -> bool:
        try:
            return not sock.recv(1000)
        except OSError:
            return True

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._socks) - len(self._listeners)

    def stop(self) -> None:
        """Close everything; new connections are refused."""
        self._stop.set()
        self._thread.join(PATIENCE)
        for sock in self._socks.values():
            sock.close()
        self._poll.close()


SERVERS = {"tcp": TcpServer, "udp": udp.Server}


class Refused(Exception):
    """No backend serves this client."""


class Session:
    """A session of a client; ``name`` is its backend. It stays open until end(), or until UDP's idle timeout.

    ``source`` is one of MANY, None for the client's own address. Raises Refused, over UDP when nothing has come in
    ``patience`` seconds.
    """

    def __init__(self, lab, protocol: str, to: tuple[str, int], source: str | None = None, patience: float = PATIENCE):
        self._to = to
        kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
        family = family_of(to[0])
        with lab["client"].inside():
            self._sock = socket.socket(family, kind)
        self._sock.settimeout(PATIENCE)
        if source and family == socket.AF_INET6:  # or the kernel lets it have addresses of an interface only
            self._sock.setsockopt(socket.IPPROTO_IPV6, sockets.IPV6_TRANSPARENT, 1)
        self._sock.bind((source or "", 0))
        self.name = self._ask_udp(patience) if protocol == "udp" else self._ask_tcp()
        self._udp = protocol == "udp"

    def _ask_tcp(self) -> str:
        try:
            self._sock.connect(self._to)
            return self._sock.recv(100).decode()
        except ConnectionResetError:
            self._sock.close()
            raise Refused from None

    def _ask_udp(self, patience: float) -> str:
        try:
            return udp.who(self._sock, self._to, patience)[0]
        except AssertionError:
            self._sock.close()
            raise Refused from None

    def go_on(self) -> None:
        """Exchange data, so that the session is not idle; the backend must be the same."""
        if self._udp:
            assert udp.who(self._sock, self._to)[0] == self.name
        else:
            self._sock.send(b"!")

    def is_reset(self) -> bool:
        """Whether RST has come, which no UDP session gets."""
        self._sock.settimeout(0)
        try:
            return self._sock.recv(1) == b"?"  # neither data nor EOF is expected
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    def end(self) -> None:
        """Close the client's socket."""
        self._sock.close()


def refused(lab, protocol: str, to: tuple[str, int]) -> bool:
    """Whether a client is refused; over UDP it sends one datagram."""
    try:
        Session(lab, protocol, to, patience=udp.QUIET).end()
    except Refused:
        return True
    return False


class Asker:
    """Opens sessions through a forwarder and closes them with the test."""

    def __init__(self, lab, protocol, family, port):
        self._lab, self._protocol, self._to = lab, protocol, (getattr(lab["a"], family), port)
        self.family = family
        self.sessions: list[Session] = []

    def one(self):
        """Open a session; raises Refused."""
        self.sessions.append(Session(self._lab, self._protocol, self._to))
        return self.sessions[-1]

    def refused(self):
        """Whether another session is refused."""
        return refused(self._lab, self._protocol, self._to)

    def many(self, count):
        """Open ``count`` sessions that stay open; return how many each backend has."""
        return Counter(self.one().name for _session in range(count))

    def clients(self, count, port=None):
        """{client address: backend} of short sessions from ``count`` addresses."""
        found = {}
        for number in range(1, count + 1):
            address = str(ipaddress.ip_network(MANY[self.family])[number])
            session = Session(self._lab, self._protocol, (self._to[0], port or self._to[1]), address)
            found[address] = session.name
            session.end()
        return found
