# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The servers of the supervisor: whatever a client does, what it costs has a bound."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import socket
import stat
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import endpoint, protocols
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import settings
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.timers import Timers

CHATTY = b"?" * 1000


class Loop:
    """A selector, a timers and a clock, turned by hand; a server that answers a line with a line of the same length."""

    def __init__(self, path, answer=lambda client, line: client.write(line + b"\n"), lasting=True):
        self.selector, self.timers, self.time = selectors.DefaultSelector(), Timers(), 100.0
        self.path = str(path / "sock")
        sock = endpoint._bind_path(self.path, None)
        loop = SimpleNamespace(selector=self.selector, timers=self.timers, now=lambda: self.time)
        self.server = endpoint.Server(loop, sock, protocols.line_handler(answer), b"too long\n", lasting)

    def client(self):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5)
        sock.connect(self.path)
        self.turn()
        return sock

    def turn(self, passed=0.0):
        """Let time pass, and everything happen that is due."""
        self.time += passed
        for item in self.timers.due(self.time):
            item()
        while ready := self.selector.select(0):
            for key, _mask in ready:
                key.data()

    def held(self):
        """Bytes the server keeps for its clients."""
        return sum(len(client._input) + len(client._output) for client in self.server.clients)


@pytest.fixture
def make(tmp_path):
    made = []

    def loop(*arguments):
        made.append(Loop(tmp_path, *arguments))
        return made[-1]

    yield loop
    for one in made:
        one.server.close()
        one.selector.close()


def test_lines_are_answered_in_order_however_they_are_cut(make):
    loop = make()
    with loop.client() as sock:
        for piece in (b"on", b"e\ntwo\nth", b"ree\n"):
            sock.sendall(piece)
            loop.turn()
        assert sock.recv(100) == b"one\ntwo\nthree\n"


def flood(loop, sock, piece, most):
    """Send pieces until the server takes no more; it never holds more than ``most`` bytes. Returns what was sent."""
    sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
        while sent < 64 * most:
            sent += sock.send(piece)
            loop.turn()
            assert loop.held() <= most
    return sent


def test_a_line_without_an_end_is_refused(make):
    loop, most = make(), endpoint.LARGEST_REQUEST + endpoint.CHUNK
    with loop.client() as sock:
        assert flood(loop, sock, CHATTY, most) <= most
    assert not loop.server.clients


def test_who_does_not_read_is_not_read_from(make):
    loop, most = make(), endpoint.LARGEST_REQUEST + 2 * endpoint.CHUNK
    with loop.client() as sock:
        assert flood(loop, sock, CHATTY + b"\n", most) < 64 * most
        assert len(loop.server.clients) == 1


def test_an_answer_that_is_too_large_ends_the_connection(make):
    loop = make(lambda client, _line: client.write(b"x" * (endpoint.LARGEST_OUTPUT * 2)))
    with loop.client() as sock:
        sock.sendall(b"\n")
        loop.turn()
        assert not loop.server.clients


def stream(client, _line, count=200):
    """Answer with a large answer: 200 pieces of 100 kB."""
    client.write(bytes([number]) * 100_000 for number in range(count))


def test_a_large_answer_arrives_whole_and_is_made_as_it_is_read(make):
    loop, most = make(stream), 2 * 100_000
    with loop.client() as sock:
        sock.sendall(b"\n\n")
        for number in (*range(200), *range(200)):
            received = b""
            while len(received) < 100_000:
                loop.turn()
                assert loop.held() <= most
                received += sock.recv(100_000 - len(received))
            assert received == bytes([number]) * 100_000


def test_an_answer_that_comes_later_does_not_get_into_a_large_one(make):
    clients = []

    def answer(client, line):
        clients.append(client)
        if line == b"large":
            stream(client, line)

    loop = make(answer)
    with loop.client() as sock:
        sock.sendall(b"slow\nlarge\n")
        loop.turn()
        clients[0].write(b"slow answer\n")
        received = b""
        while len(received) < 20_000_012:
            loop.turn()
            received += sock.recv(1 << 20)
        assert received.endswith(bytes([199]) * 100_000 + b"slow answer\n")


def test_of_large_answers_only_some_are_under_way(make):
    loop = make(stream)
    readers = []
    for _client in range(endpoint.MOST_STREAMS + 1):
        readers.append(loop.client())
        readers[-1].sendall(b"\n")
        loop.turn(1)
    assert len(loop.server.clients) == endpoint.MOST_STREAMS
    assert whole(readers[0]) < 20_000_000, "the one that has read longest without an end made room"
    for sock in readers:
        sock.close()


def whole(sock):
    """Return how many bytes there are until the end."""
    return sum(iter(lambda: len(sock.recv(1 << 20)), 0))


def test_who_has_waited_longest_makes_room(make):
    loop = make()
    inside = []
    for _client in range(endpoint.MOST_CLIENTS):
        inside.append(loop.client())
        inside[-1].sendall(b"dr")  # and nothing more
        loop.turn(0.1)
    inside[0].sendall(b"op\n")
    loop.turn(0.1)
    assert inside[0].recv(100) == b"drop\n", "it has had its answer now, so the second has waited longer"
    with loop.client() as late:
        late.sendall(b"?\n")
        loop.turn()
        assert late.recv(10) == b"?\n"
        assert inside[1].recv(1) == b""
        assert len(loop.server.clients) == endpoint.MOST_CLIENTS
    for sock in inside:
        sock.close()


def drip(loop, sock):
    sock.sendall(b"?")


def read_a_little(loop, sock):
    sock.recv(1000)


TEST_SLOW = [
    # Whether connections last, what the client begins with, what it does again and again, when it is gone.
    (True, b"?", drip, endpoint.EXCHANGE),
    (False, b"?", drip, endpoint.EXCHANGE),
    (False, b"", drip, endpoint.EXCHANGE),
    (True, b"\n", read_a_little, endpoint.EXCHANGE),
    (False, b"\n", read_a_little, endpoint.EXCHANGE),
    (True, b"\n", lambda _loop, _sock: None, endpoint.EXCHANGE),
    (False, b"", lambda _loop, _sock: None, endpoint.EXCHANGE),
    (True, b"", lambda _loop, _sock: None, endpoint.IDLE),
]


@pytest.mark.parametrize(("lasting", "first", "act", "longest"), TEST_SLOW)
def test_who_is_slow_is_gone_in_time_however_often_a_byte_moves(make, lasting, first, act, longest):
    loop, passed = make(stream, lasting), 0.0
    with loop.client() as sock:
        sock.sendall(first)
        loop.turn()
        while loop.server.clients:
            assert passed <= longest + 1
            act(loop, sock)
            loop.turn(0.5)
            passed += 0.5
    assert passed >= longest - 1


def test_an_admin_who_asks_now_and_then_stays(make):
    loop = make()
    with loop.client() as sock:
        for _question in range(5):
            loop.turn(endpoint.IDLE - 1)
            sock.sendall(b"?\n")
            loop.turn()
            assert sock.recv(10) == b"?\n"


def test_out_of_descriptors_a_client_makes_room_and_the_loop_rests(make):
    loop = make()
    with loop.client() as idle, socket.socket(socket.AF_UNIX) as late:
        late.settimeout(5)
        late.connect(loop.path)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        with open(os.devnull, "rb") as next_one:
            resource.setrlimit(resource.RLIMIT_NOFILE, (next_one.fileno(), limits[1]))
        try:
            loop.turn()  # it would not return if the loop went on asking
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert idle.recv(1) == b""
        loop.turn(endpoint.PAUSE + 0.2)
        late.sendall(b"?\n")
        loop.turn()
        assert late.recv(10) == b"?\n"


def test_the_socket_of_an_admin_is_for_owner_and_group(make):
    loop = make()
    assert stat.S_IMODE(os.stat(loop.path).st_mode) == 0o660
    assert not os.path.exists(f"{loop.path}.new")


def test_what_a_config_wants(monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/x")
    plain = Config(proxy_id=1, services=())
    assert endpoint.wanted(plain) == {"admin:/run/x/admin.sock": "admin"}
    admin, metrics = settings.Admin(socket="/run/y.sock"), settings.Metrics(listen="[::1]:9110")
    chosen = Config(proxy_id=1, services=(), admin=admin, metrics=metrics)
    assert endpoint.wanted(chosen) == {"admin:/run/y.sock": "admin", "metrics:[::1]:9110": "metrics"}


TEST_HTTP = [
    (b"GET /a?b HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.0 200 OK\r\n", b"/a"),
    (b"GET /a HTTP/1.0\n\n", b"HTTP/1.0 200 OK\r\n", b"/a"),
    (b"HEAD /a HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\r\n", b""),
    (b"POST /a HTTP/1.0\r\n\r\n", b"HTTP/1.0 405 ", b""),
    (b"GET /a\r\n\r\n", b"HTTP/1.0 400 ", b""),
    (b"GET /\xff HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\r\n", "/ÿ".encode()),
    (b"\r\n\r\n", b"HTTP/1.0 400 ", b""),
]


@pytest.mark.parametrize(("request_", "status", "body"), TEST_HTTP)
def test_http(request_, status, body):
    written = []
    client = SimpleNamespace(write=lambda data, last: written.append((data, last)))
    handle = protocols.http_handler(lambda path: ("200 OK", "text/plain", iter([path])))
    assert handle(client, bytearray(request_[:-1])) is False
    assert handle(client, bytearray(request_)) is True
    ((data, last),) = written[-1:]
    head, _blank, found = data.partition(b"\r\n\r\n")
    assert (data.startswith(status), found, last) == (True, body, True)
    assert b"Connection: close" in head


def test_the_admin_socket_takes_the_place_of_no_file(tmp_path):
    path = tmp_path / "notes"
    path.write_text("kept")
    with pytest.raises(FileExistsError):
        endpoint._bind_path(str(path), None)
    assert path.read_text() == "kept"
    assert [one.name for one in tmp_path.iterdir()] == ["notes"]
    path.unlink()
    for _time in range(2):  # a socket of before is replaced
        endpoint._bind_path(str(path), None).close()
