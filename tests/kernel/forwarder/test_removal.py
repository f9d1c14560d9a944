# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What leaves the config in place keeps its sessions until its deadline, then both ends are reset; all others stay."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import socket
import threading
import time

import pytest

from tests.support import tcp, udp
from tests.support.addresses import FAMILIES, address_of
from tests.support.forwarding import Forwarder, make_config, make_service
from tests.support.waiting import PATIENCE, eventually

RAW, BULK, NAMES, ASK, SERVER, SINK = 7000, 7001, 7002, 7003, 9000, 9001
DEADLINE, LATER = 3.0, 10.0
# Connections do not need their listener, so those of "bulk" stay.
WITHOUT = {
    "backend removed": {"raw": ["c"], "bulk": BULK + 100},
    "service removed": {"raw": None},
}


def document(lab, raw=("b", "d"), bulk=BULK, deadline=DEADLINE, **options):
    """The services "raw", of which something leaves, and "bulk" and "names", which stay."""
    services = [
        make_service(lab, "bulk", bulk, SINK, ["c"], idle_timeout=300),
        make_service(lab, "names", NAMES, SERVER, ["c"], protocol="udp"),
    ]
    if raw:
        services.insert(len(raw) % 2, make_service(lab, "raw", RAW, SERVER, raw, drain_timeout=deadline))
    return make_config(*services, workers=2, **options)


def change(forwarder, new) -> None:
    forwarder.configure(new)
    done = forwarder.reload()
    assert done.returncode == 0, done.stderr
    assert forwarder.runtime()["last_reload"]["in_place"], forwarder.show()


class Bulk:
    """Streams to a server without a pause, in a thread each; ``check()`` compares what was sent and received."""

    def __init__(self, lab, stack):
        self._stop = threading.Event()
        self._threads, self._pairs, self.sent = [], [], 0
        for family in FAMILIES:
            listener = stack.enter_context(tcp.listen(lab, "c", SINK, family))
            client = stack.enter_context(tcp.connect(lab, address_of(lab["a"], family), BULK))
            server = stack.enter_context(tcp.accept(listener))
            sums = [hashlib.sha256(), hashlib.sha256()]
            self._pairs.append(sums)
            for work in (self._send, self._receive):
                thread = threading.Thread(target=work, args=(client, server, sums), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _send(self, client, _server, sums):
        while not self._stop.is_set():
            piece = os.urandom(1 << 18)
            client.sendall(piece)
            sums[0].update(piece)
            self.sent += len(piece)
            time.sleep(0.01)
        client.shutdown(socket.SHUT_WR)

    def _receive(self, _client, server, sums):
        while piece := server.recv(1 << 18):
            sums[1].update(piece)

    def check(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        for sent, received in self._pairs:
            assert sent.digest() == received.digest()
        assert self.sent > 1 << 22


@pytest.fixture
def forwarder(lab):
    with Forwarder(lab, document(lab)) as forwarder:
        yield forwarder


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("reason", WITHOUT)
def test_at_the_deadline_of_a_removal_both_ends_are_reset_and_nothing_else_is_touched(lab, forwarder, stack, reason):
    servers = {family: stack.enter_context(tcp.listen(lab, "b", SERVER, family)) for family in FAMILIES}
    change(forwarder, document(lab, raw=["b"]))
    bulk = Bulk(lab, stack)
    stack.enter_context(udp.serving(lab, SERVER, ["c"]))
    clients = {family: stack.enter_context(udp.client(lab, address_of(lab["a"], family))) for family in FAMILIES}
    seen = {family: udp.who(sock, (address_of(lab["a"], family), NAMES)) for family, sock in clients.items()}
    pairs = [tcp.pair(lab, server, RAW) for server in servers.values() for _connection in range(2)]
    workers = forwarder.workers()
    begun = time.monotonic()
    change(forwarder, document(lab, **{"raw": ["b"], **WITHOUT[reason]}))
    while time.monotonic() < begun + DEADLINE - 1:
        for pair in pairs:
            tcp.assert_open(*pair)
        time.sleep(0.2)
    for client, server in pairs:
        for sock in (client, server):
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
    assert DEADLINE - 0.5 < time.monotonic() - begun < DEADLINE + PATIENCE
    for family, sock in clients.items():
        assert udp.who(sock, (address_of(lab["a"], family), NAMES)) == seen[family]
    bulk.check()
    assert forwarder.workers() == workers
    lines = eventually(lambda: len(ended := forwarder.log("connection")) == 4 and ended, explain=forwarder.show)
    assert {(line["service"], line["ended"]) for line in lines} == {("raw", reason)}
    status = forwarder.status()
    assert status["totals"]["removal_ended"] == 4
    sessions = {service["name"]: service["sessions"] for service in status["services"]}
    assert sessions == {"bulk": 2, "names": 2, **({"raw": 0} if reason != "service removed" else {})}


def test_a_backend_with_another_address_keeps_its_sessions(lab, forwarder, stack):
    """A change of the return path strategy gives it one."""
    servers = {family: stack.enter_context(tcp.listen(lab, "b", SERVER, family)) for family in FAMILIES}
    stack.enter_context(udp.serving(lab, SERVER, ["b", "d"]))
    others = [stack.enter_context(tcp.listen(lab, "d", SERVER, family)) for family in FAMILIES]
    before = document(lab, raw=["b"])
    before["services"].append(make_service(lab, "ask", ASK, SERVER, ["b"], protocol="udp", drain_timeout=DEADLINE))
    change(forwarder, before)
    pairs = [tcp.pair(lab, server, RAW) for server in servers.values()]
    clients = {family: stack.enter_context(udp.client(lab, address_of(lab["a"], family))) for family in FAMILIES}

    def ask():
        return [udp.who(sock, (address_of(lab["a"], family), ASK)) for family, sock in clients.items()]

    assert ask()
    seen = ask()  # now it is a conversation
    after = copy.deepcopy(before)
    for service in after["services"]:
        for backend in service["backends"]:
            if backend["name"] == "b":
                backend.update(ipv4=lab["d"].ipv4, ipv6=lab["d"].ipv6)
    begun = time.monotonic()
    change(forwarder, after)
    new = [tcp.pair(lab, other, RAW) for other in others]
    while time.monotonic() < begun + DEADLINE + 1:
        for pair in (*pairs, *new):
            tcp.assert_open(*pair)
        assert ask() == seen
        time.sleep(0.2)
    sessions = {service["name"]: service["sessions"] for service in forwarder.status()["services"]}
    assert (sessions["raw"], sessions["ask"]) == (4, 2)


def test_what_comes_back_before_its_deadline_keeps_its_sessions(lab, forwarder, stack):
    """The service, its listeners and its backend; and another time only the backend, which is the negative control."""
    servers = {family: stack.enter_context(tcp.listen(lab, "b", SERVER, family)) for family in FAMILIES}
    change(forwarder, document(lab, raw=["b"], deadline=LATER))
    pairs = [tcp.pair(lab, server, RAW) for server in servers.values()]
    begun = time.monotonic()
    change(forwarder, document(lab, raw=None))
    change(forwarder, document(lab, raw=["b"], deadline=0))
    assert time.monotonic() - begun < LATER, "this machine is too slow for the test"
    while time.monotonic() < begun + LATER + 1:
        for pair in pairs:
            tcp.assert_open(*pair)
        time.sleep(0.2)
    (service,) = (one for one in forwarder.status()["services"] if one["name"] == "raw")
    assert service["sessions"] == 2
    change(forwarder, document(lab, raw=["c"], deadline=0))
    for sock in pairs[0]:
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
