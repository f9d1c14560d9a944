# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of every TCP socket, read back from the kernel over the loopback, without privileges."""

from __future__ import annotations

import ast
import contextlib
import errno
import os
import select
import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop import sockets
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp import udp_sockets

KEEPALIVE = (1, 60, 10, 6)  # on, idle seconds, seconds between probes, probes
BOTH_LOOPBACKS = pytest.mark.parametrize(
    ("address", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)]
)


def keepalive(sock):
    """The keepalive options of a socket."""
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    return (
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        *(sock.getsockopt(socket.IPPROTO_TCP, option) for option in options),
    )


@BOTH_LOOPBACKS
@pytest.mark.parametrize(("seconds", "options"), [(60, KEEPALIVE), (0, (0,)), (3, (1, 3, 1, 6))])
def test_the_options_of_a_listener_and_of_its_connections(address, family, seconds, options):
    with sockets.listening_socket(address, 0, 16) as listener:
        sockets.tune_listener(listener, seconds, 2.5)
        assert listener.family == family
        assert listener.gettimeout() == 0.0
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        if family == socket.AF_INET6:
            assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        with sockets.listening_socket(address, listener.getsockname()[1], 16):
            pass  # a second slot may have the same address
        with pytest.raises(BlockingIOError):
            sockets.accept(listener._accept, family)
        with socket.create_connection(listener.getsockname()[:2]) as client:
            select.select([listener], [], [], 10)
            accepted, peer = sockets.accept(listener._accept, family)
            assert peer[:2] == client.getsockname()[:2]
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
            assert keepalive(accepted)[: len(options)] == options
            assert accepted.getsockopt(socket.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT) == 2500
            with pytest.raises(BlockingIOError):
                accepted.recv(1, socket.MSG_DONTWAIT)
            assert os.get_blocking(accepted.fileno()), "that saves a system call"
            sockets.make_non_blocking(accepted)
            with pytest.raises(BlockingIOError):
                os.read(accepted.fileno(), 1)
            accepted.close()


@pytest.mark.parametrize("address", ["198.51.100.9", "2001:db8:ffff::9"])
@pytest.mark.parametrize("make", [lambda *to: sockets.listening_socket(*to, 16), udp_sockets.listener])
def test_a_socket_can_listen_on_an_address_that_the_host_does_not_have(monkeypatch, address, make):
    make(address, 0).close()
    monkeypatch.setattr(sockets, "allow_absent", lambda _sock: None)
    with pytest.raises(OSError, match=r"\[Errno 99\]"):  # EADDRNOTAVAIL
        make(address, 0)


def test_listening_on_an_address_in_use_raises():
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError, match="in use"):
        sockets.listening_socket("127.0.0.1", other.getsockname()[1], 16)


class FakeSocket:
    """Stands in for socket.socket: records options and calls."""

    error = errno.EINPROGRESS
    made: list = []  # noqa: RUF012

    def __init__(self, family, kind):
        self.family, self.kind, self.options, self.calls = family, kind, {}, []
        FakeSocket.made.append(self)

    def setsockopt(self, level, option, value):
        self.options[level, option] = value

    def bind(self, address):
        self.calls.append(("bind", address))

    def connect_ex(self, address):
        self.calls.append(("connect", address))
        return self.error

    def close(self):
        self.calls.append("close")


@pytest.fixture
def fake(monkeypatch):
    FakeSocket.made = []
    for name in ("socket", "SocketType"):
        monkeypatch.setattr(sockets.socket, name, FakeSocket)
    return FakeSocket


TARGET = ("198.18.0.21", 8080)


def begin_connect_from(source, port=0, ports=None):
    """The socket of a connect from a source, begun as source_address.py does."""
    family = sockets.socket_family_of(source)
    options = sockets.transparent_options(family, ports, kept=bool(port)) + sockets.upstream_options()
    return sockets.begin_connect(family, options, (source, port), TARGET)


@BOTH_LOOPBACKS
def test_an_upstream_connection_gets_tcp_nodelay_only_later(address, family):
    with socket.create_server((address, 0), family=family) as server:
        options = sockets.upstream_options(1.5)
        upstream = sockets.begin_connect(family, options, None, server.getsockname()[:2])
        with contextlib.closing(upstream):
            assert upstream.getsockopt(socket.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT) == 1500
            assert not upstream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            sockets.send_at_once(upstream)
            assert upstream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sockets.pending_error(upstream) == 0


@pytest.mark.skipif(not sockets.chooses_within(40000, 40063), reason="Linux 6.3 or newer")
@BOTH_LOOPBACKS
def test_the_kernel_chooses_a_port_within_the_range(address, family):
    first = 40000
    options = ((socket.IPPROTO_IP, sockets.IP_LOCAL_PORT_RANGE, sockets.port_range(first, first + 63)),)
    with socket.create_server((address, 0), family=family, backlog=64) as server:
        target = server.getsockname()[:2]
        upstreams = [sockets.begin_connect(family, options, None, target) for _connection in range(20)]
        assert {upstream.getsockname()[1] for upstream in upstreams} <= set(range(first, first + 64))
        for upstream in upstreams:
            upstream.close()


def test_a_connect_without_a_spoofed_source_binds_nothing_and_does_not_block(fake):
    made = sockets.begin_connect(socket.AF_INET, sockets.upstream_options(), None, TARGET)
    assert made.kind & socket.SOCK_NONBLOCK
    assert made.options == {(socket.IPPROTO_TCP, socket.TCP_QUICKACK): 0, (socket.SOL_SOCKET, socket.SO_OOBINLINE): 1}
    assert made.calls == [("connect", TARGET)]


def test_a_connect_that_fails_at_once_closes_the_socket(fake, monkeypatch):
    monkeypatch.setattr(FakeSocket, "error", errno.ENETUNREACH)
    with pytest.raises(OSError) as caught:
        sockets.begin_connect(socket.AF_INET, (), None, TARGET)
    assert sockets.describe(caught.value) == "ENETUNREACH: Network is unreachable"
    assert FakeSocket.made[0].calls[-1] == "close"


@pytest.mark.parametrize(("method", "number", "text"), [
    ("setsockopt", errno.EPERM, "CAP_NET_RAW is missing"),
    ("bind", errno.EACCES, "CAP_NET_BIND_SERVICE is missing"),
])  # fmt: skip
def test_the_error_of_a_missing_capability_names_it(fake, monkeypatch, method, number, text):
    def deny(*_arguments):
        raise PermissionError(number, "denied")

    monkeypatch.setattr(FakeSocket, method, deny)
    with pytest.raises(sockets.CapabilityError) as caught:
        begin_connect_from("203.0.113.7", 80)
    assert text in sockets.describe(caught.value)
    assert fake.made[0].calls == ["close"]


def test_reset_sends_rst():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _address = server.accept()
        with client:
            sockets.reset(accepted)
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_sockets_imports_only_the_standard_library_and_the_families():
    """The handshake probe imports it, and must not pull the engine into its payload."""
    with open(sockets.__file__, encoding="utf-8") as stream:
        tree = ast.parse(stream.read())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {"." * node.level + node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {"__future__", "errno", "fcntl", "os", "socket", "struct", "..._shared.families"}
