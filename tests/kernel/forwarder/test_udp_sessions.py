# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""UDP sessions over reloads and the death of a worker, and many sessions at once."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop import sockets
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp import ancillary

from tests.kernel.forwarder import sessions
from tests.support import udp
from tests.support.addresses import FAMILIES, family_of
from tests.support.forwarding import Forwarder, build_archive, make_config, make_service
from tests.support.waiting import PATIENCE, eventually

ECHO, BACKEND = 5300, 9000
#: 200 of them times 100 ports are 20,000 clients in 100 sockets.
CLIENTS = sessions.CLIENTS


def document(lab, **options):
    return make_config(make_service(lab, "echo", ECHO, BACKEND, protocol="udp", idle_timeout=30), **options)


class Flow:
    """A client that sends one request after another, and records the backends and errors."""

    def __init__(self, sock, to):
        self.sock, self.to = sock, to
        self.answers: set[bytes] = set()
        self.asked = self.lost = 0
        sock.setblocking(False)
        self._asked_at = 0.0

    def ask(self, now):
        self.sock.sendto(udp.QUESTION, self.to)
        self.asked += 1
        self._asked_at = now

    def heard(self):
        answer, source = self.sock.recvfrom(2048)
        assert source[:2] == self.to
        self.answers.add(answer)
        self._asked_at = 0.0

    def turn(self, now, late):
        """Send the next request, once the last one was answered or given up."""
        if self._asked_at and now - self._asked_at < late:
            return
        if self._asked_at:
            self.lost += 1
        self.ask(now)


class Flows:
    """A thread with many flows."""

    def __init__(self, lab, count, late=3.0, pause=0.1):
        self.flows = []
        for number in range(count):
            family = FAMILIES[number % 2]
            address = getattr(lab["a"], family)
            self.flows.append(Flow(udp.client(lab, address), (address, ECHO)))
        self._late, self._pause = late, pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        by_number = {flow.sock.fileno(): flow for flow in self.flows}
        poll = select.epoll()
        for number in by_number:
            poll.register(number, select.EPOLLIN)
        while not self._stop.is_set():
            now = time.monotonic()
            for flow in self.flows:
                flow.turn(now, self._late)
            until = now + self._pause
            while (left := until - time.monotonic()) > 0:
                for number, _mask in poll.poll(left):
                    by_number[number].heard()

    def __enter__(self):
        self._thread.start()
        return self

    def settled(self):
        """Wait until every flow has been answered."""
        eventually(lambda: all(flow.answers for flow in self.flows), "every flow is answered")
        return self

    def __exit__(self, *exc_info):
        self._stop.set()
        self._thread.join(PATIENCE)
        for flow in self.flows:
            flow.sock.close()


def reload(forwarder, document):
    """Reload with new processes if the forwarder has an archive, else in place."""
    if forwarder.archive:
        forwarder.change_archive()
    forwarder.configure(document)
    done = forwarder.reload()
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(params=["new_processes", "in_place"])
def archive(request, tmp_path):
    return build_archive(tmp_path) if request.param == "new_processes" else None


def test_reloads_lose_no_datagram_and_move_no_flow(lab, udp_servers, archive):
    """Every flow keeps its backend and its source port, on two workers."""
    with Forwarder(lab, document(lab, workers=2), archive=archive) as forwarder:
        with Flows(lab, 200) as flows:
            flows.settled()
            for number in range(4):
                reload(forwarder, document(lab, workers=2, drain_timeout=20 + number))
        assert [len(flow.answers) for flow in flows.flows] == [1] * 200
        assert sum(flow.lost for flow in flows.flows) == 0
        assert sum(flow.asked for flow in flows.flows) > 1000
        assert [line["dropped"] for line in forwarder.log("sessions taken over")] == ([0] * 8 if archive else [])
        assert forwarder.status()["services"][0]["sessions"] == 200
        assert forwarder.log("session") == []


def test_a_reload_with_fewer_workers_keeps_all_sessions(lab, udp_servers):
    with Forwarder(lab, document(lab, workers=2)) as forwarder:
        with Flows(lab, 100) as flows:
            flows.settled()
            reload(forwarder, document(lab, workers=1))
            asked = sum(flow.asked for flow in flows.flows)
            eventually(lambda: sum(flow.asked for flow in flows.flows) > asked + 300, "more questions")
        assert [len(flow.answers) for flow in flows.flows] == [1] * 100
        assert sum(flow.lost for flow in flows.flows) == 0


def test_reloads_keep_kept_ports_and_own_addresses(lab, udp_servers, archive):
    keep = make_service(lab, "keep", 5301, BACKEND, protocol="udp", source_port="keep")
    hide = make_service(lab, "hide", 5302, BACKEND, protocol="udp", source_fallback="own")
    for backend in hide["backends"]:
        del backend["ipv6"]
    config = make_config(keep, hide)
    with (
        Forwarder(lab, config, archive=archive) as forwarder,
        udp.client(lab, lab["a"].ipv6) as one,
        udp.client(lab, lab["a"].ipv6) as two,
    ):
        before = udp.who(one, (lab["a"].ipv6, 5301)), udp.who(two, (lab["a"].ipv6, 5302))
        reload(forwarder, config)
        assert (udp.who(one, (lab["a"].ipv6, 5301)), udp.who(two, (lab["a"].ipv6, 5302))) == before


def test_new_processes_move_the_sessions_of_a_removed_backend_to_another(lab, udp_servers, tmp_path):
    with Forwarder(lab, document(lab), archive=build_archive(tmp_path)) as forwarder:
        with Flows(lab, 30) as flows:
            flows.settled()
            without = document(lab)
            del without["services"][0]["backends"][0]
            reload(forwarder, without)
            gone = [flow for flow in flows.flows if any(answer.startswith(b"b ") for answer in flow.answers)]
            eventually(lambda: all(len(flow.answers) == 2 for flow in gone), "they are answered by another")
        assert len(gone) == 10
        assert [len(flow.answers) for flow in flows.flows if flow not in gone] == [1] * 20
        (line,) = forwarder.log("sessions taken over")
        assert (line["sessions"], line["dropped"]) == (20, 10)


@pytest.mark.ipv4_only
def test_a_stopped_forwarder_ends_its_sessions(lab, udp_servers):
    with Forwarder(lab, document(lab)) as forwarder, udp.client(lab, lab["a"].ipv4) as sock:
        udp.who(sock, (lab["a"].ipv4, ECHO))
        assert forwarder.stop() == 0
    (line,) = forwarder.log("session")
    assert line["ended"] == "stopped"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_loses_only_its_own_sessions(lab, udp_servers, workers):
    with Forwarder(lab, document(lab, workers=workers)) as forwarder:
        with Flows(lab, 60, late=0.5) as flows:
            flows.settled()
            os.kill(forwarder.workers()[0], signal.SIGKILL)
            asked = [flow.asked for flow in flows.flows]
            eventually(
                lambda: all(flow.asked > before + 10 for flow, before in zip(flows.flows, asked)),
                "every flow goes on",
                forwarder.show,
            )
        kept = [flow for flow in flows.flows if len(flow.answers) == 1]
        assert len(kept) < 60
        assert workers == 1 or kept


def test_thousands_of_sessions_share_ports_without_mixing(lab, udp_servers, family):
    """20,000 clients over few upstream sockets: each datagram comes back to its client."""
    addresses = [CLIENTS[family].format(number) for number in range(1, 201)]
    to = (getattr(lab["a"], family), ECHO)
    packed = {socket.inet_pton(family_of(to[0]), address): address for address in addresses}
    with Forwarder(lab, document(lab)) as forwarder:
        socks = {}
        for port in range(20000, 20100):
            sock = udp.client(lab, to[0], port)
            sock.setsockopt(*ancillary.REPORT_DESTINATION[sock.family], 1)
            sock.setsockopt(socket.SOL_SOCKET, udp.SO_RCVBUFFORCE, 8 << 20)
            if family == "ipv6":  # or the kernel lets it send from addresses of an interface only
                sock.setsockopt(socket.IPPROTO_IPV6, sockets.IPV6_TRANSPARENT, 1)
            socks[port] = sock
        missing = {(address, port) for address in addresses for port in socks}
        wrong: list = []
        deadline = time.monotonic() + 60
        while missing and not wrong:
            assert time.monotonic() < deadline, f"{len(missing)} without an answer"
            for number, (address, port) in enumerate(sorted(missing)):
                leaving = ancillary.leaving_from(socket.inet_pton(family_of(address), address))
                socks[port].sendmsg([f"{address} {port}".encode()], leaving, 0, to)
                if number % 100 == 99:
                    wrong += collect(socks, packed, missing, to, 0.0)
            wrong += collect(socks, packed, missing, to, udp.QUIET)
        for sock in socks.values():
            sock.close()
        assert wrong == []
        assert forwarder.status()["services"][0]["sessions"] == 20000
        ports = {port for server in udp_servers.values() for address, port in server.seen if address in addresses}
        assert len(ports) < 1000  # 20,000 sessions, and few ports


def collect(socks, packed, missing, to, wait):
    """Read pending answers and remove them from ``missing``; return those that came to a wrong client."""
    wrong = []
    while ready := select.select(list(socks.values()), [], [], wait)[0]:
        for sock in ready:
            data, messages, _flags, source = sock.recvmsg(2048, ancillary.SPACE)
            receiver = packed[messages[0][2][ancillary.DESTINATION[sock.family]]], sock.getsockname()[1]
            if data != f"{receiver[0]} {receiver[1]}".encode() or source[:2] != to:
                wrong.append((receiver, data, source))
            missing.discard(receiver)
    return wrong
