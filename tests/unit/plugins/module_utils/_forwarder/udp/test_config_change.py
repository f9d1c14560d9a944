# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker takes a config in place: what becomes of each UDP session, by what it was and by what has changed."""

from __future__ import annotations

import errno
import socket
from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Limits
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.settings import PortRange
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp import udp_sockets
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp.upstream import UpstreamSocket

from ..changing_host import CHANGES, DATAGRAM, service

ANSWER_TIME = 1.0


class Session:
    """A session of a client with a server, with as many datagrams as ``steps`` has: "q"uestions and "a"nswers."""

    def __init__(self, host, web, server, steps):
        self.host, self.web, self.server = host, web, server
        self.client = host.datagram_client(web.listen[0], b"q")
        self.place = host.received(server.sock)[1]
        for step in steps[1:]:
            self.ask() if step == "q" else self.answer()
        port = self.client.getsockname()[1]
        self.flow = next(flow for flow in host.udp.table.flows if flow.client[1] == port)

    def ask(self, server=None):
        """Send a question, which the server gets, the session's own by default; return where it came from."""
        listener = self.web.listen[0]
        self.client.sendto(b"q", (listener.address, listener.port))
        data, place = self.host.received((server or self.server).sock)
        assert data == b"q"
        return place

    def answer(self):
        self.server.sock.sendto(b"a", self.place)
        assert self.host.received(self.client)[0] == b"a"

    @property
    def alive(self):
        return self.flow in self.host.udp.table.flows


def dns(*backends, family="ipv4", **options):
    return service(*backends, family=family, protocol="udp", idle_timeout=60.0, **options)


def later(host, seconds):
    """Run the timers as if that many seconds had passed."""
    for callback in host.loop.timers.due(host.loop.now() + seconds):
        callback()


@pytest.fixture
def server(serve, family):
    return serve(family, DATAGRAM)


@pytest.mark.parametrize(("family", "steps", "end"), [
    ("ipv4", "qaq", "deadline"), ("ipv6", "qaq", "deadline"), ("ipv6", "qa", "now"), ("ipv4", "qqq", "soon"),
    ("ipv6", "q", "soon"),
])  # fmt: skip
def test_a_session_moves_exactly_if_its_place_is_still_there(make, server, family, change, steps, end):
    web = dns(server.backend(), family=family)
    host = make(web)
    session = Session(host, web, server, steps)
    services, expected = change
    changed = services(web, server)
    if change is CHANGES["the listener"]:
        expected = "listener removed"
    host.change(*changed)
    if expected is True:
        assert host.open() == host.active() == {2: 1}
        assert host.released() == [1]
        later(host, ANSWER_TIME + 0.1)
        assert session.ask() == session.place
        session.answer()
        assert session.flow.timeout == host.worker.serving.runtimes["web"].service.idle_timeout
        return
    if expected == "service removed" and web.listen == changed[0].listen:
        end = "now"  # what arrives at its socket belongs to another service
    if end == "soon":  # for its request may still be answered
        assert session.alive
        later(host, ANSWER_TIME + 0.1)
    elif end == "deadline":
        assert host.open() == host.active() == {1: 1}
        assert session.ask() == session.place
        session.answer()
        host.at_deadline(29.0)
        assert session.alive
        host.at_deadline()
    assert not session.alive
    host.worker.earlier.look()
    assert host.open() == host.active() == {}
    assert host.released() == [1]
    assert [line["ended"] for line in host.events("session")] == [expected]
    assert host.region.total("worker", "removal_ended") == 1
    assert host.udp.leaving == []


def test_at_a_backend_with_another_address_only_conversations_go_on(make, server, family):
    web = dns(server.backend(), family=family)
    host = make(web)
    sessions = [Session(host, web, server, steps) for steps in ("qaq", "qa", "qqq")]
    other = {"ipv4": "127.0.0.2"} if family == "ipv4" else {"ipv6": "::2"}
    host.change(replace(web, backends=(replace(web.backends[0], **other),)))
    later(host, ANSWER_TIME + 0.1)
    assert [session.alive for session in sessions] == [True, False, False]
    assert host.open() == host.active() == {2: 1}
    assert sessions[0].ask() == sessions[0].place
    host.at_deadline()
    assert sessions[0].alive


def test_a_request_whose_backend_left_is_answered_and_becomes_a_conversation_or_not(make, server, family):
    web = dns(server.backend(), family=family)
    host = make(web)
    sessions = [Session(host, web, server, "q") for _session in range(3)]
    host.change(replace(web, backends=(server.backend("z"),)))
    sessions[0].answer()
    sessions[1].answer()
    sessions[1].ask()
    later(host, ANSWER_TIME + 0.1)
    assert [session.alive for session in sessions] == [False, True, False]


def test_the_next_datagram_of_a_brief_session_whose_backend_left_goes_to_another_one(make, serve, family):
    old, new = serve(family, DATAGRAM), serve(family, DATAGRAM)
    web = dns(old.backend(), family=family)
    host = make(web)
    session, conversation = Session(host, web, old, "qa"), Session(host, web, old, "qaq")
    host.change(replace(web, backends=(new.backend("z"),)))
    session.ask(new)
    conversation.ask(old)
    assert host.open() == host.active() == {1: 1, 2: 1}
    host.at_deadline()
    conversation.ask(new)
    assert host.open() == host.active() == {2: 2}
    assert host.released() == [1]


def test_a_listener_that_left_takes_no_new_client_and_is_closed_after_its_last_session(make, server, family):
    web = dns(server.backend(), family=family)
    host = make(web)
    session = Session(host, web, server, "qaq")
    host.change(dns(server.backend(), family=family, name="new"))
    session.ask()
    stranger = host.datagram_client(web.listen[0], b"q")
    host.turn_until(lambda: host.events("datagram refused"))
    assert host.events("datagram refused")[0]["reason"] == "the listener was removed"
    assert host.open() == {1: 1}
    host.udp.end(session.flow, "over")
    host.worker.earlier.look()
    assert host.released() == [1]
    assert host.udp.leaving == []
    stranger.connect((web.listen[0].address, web.listen[0].port))
    stranger.send(b"q")
    assert stranger.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


@pytest.mark.parametrize("family", ["ipv6"])
def test_what_comes_back_takes_its_sessions_back(make, server, family, change):
    web = dns(server.backend(), family=family, limits=Limits(connections_per_client=1))
    host = make(web, slots=1)  # the new sockets of several workers may not be in the order of the old ones
    session = Session(host, web, server, "qaq")
    services, _expected = change
    host.change(*services(web, server))
    if not session.alive:  # its socket belonged to another service
        return
    host.change(web)
    assert host.open() == host.active() == {3: 1}
    assert host.released() == [1, 2]
    host.at_deadline()
    assert session.ask() == session.place
    session.answer()
    host.datagram_client(web.listen[0], b"q")
    host.turn_until(lambda: host.region.total("service", "refused_limited") == 1)
    host.udp.end(session.flow, "over")
    assert host.open() == host.active() == {}
    Session(host, web, server, "q")


def test_what_clients_have_sent_to_a_listener_that_comes_back_is_forwarded(make, server, family):
    web = dns(server.backend(), family=family)
    host = make(web, slots=1)
    session = Session(host, web, server, "qaq")
    host.change(dns(server.backend(), family=family, name="new"))
    change = host.prepare(web)
    for number in range(3):
        session.client.sendto(b"%d" % number, (web.listen[0].address, web.listen[0].port))
    change.use()
    assert sorted(host.received(server.sock) for _datagram in range(3)) == [
        (b"%d" % number, session.place) for number in range(3)
    ]


def test_a_new_slice_holds_for_new_sessions_and_an_old_socket_is_closed_with_its_last(make, server, family):
    web = dns(server.backend(), family=family)
    host = make(web)
    session = Session(host, web, server, "qaq")
    hidden = session.flow.upstream  # of this session alone; so give it a shared one
    number = socket.AF_INET6 if family == "ipv6" else socket.AF_INET
    shared = UpstreamSocket(host.udp, udp_sockets.upstream(number, "", 0, spoofing=False))
    host.udp.upstreams.adopt(shared)
    host.udp.table.leave(session.flow)
    host.udp.enter(session.flow, session.flow.listener, shared)
    host.udp.upstreams.close(hidden)
    ports = PortRange(20480, 20543)
    host.change(replace(web, idle_timeout=61.0), source_ports=ports)
    assert session.flow.upstream is shared
    assert {one.port for ones in host.udp.table.shared.values() for one in ones} <= {*range(20480, 20544)}
    assert host.udp.table.find_shared(shared.family, session.flow.reply_key, True) is not shared
    host.change(replace(web, limits=Limits(connections=7)), source_ports=ports)
    assert shared in host.udp.upstreams.all
    host.udp.end(session.flow, "over")
    assert shared not in host.udp.upstreams.all
    assert host.udp.table._taken == {}


def test_a_first_udp_service_and_the_last_one_change_the_shares_of_descriptors(make, serve):
    server, stream = serve("ipv4", DATAGRAM), serve()
    web, names = service(stream.backend()), dns(server.backend(), name="dns")
    host = make(web)
    most = host.tcp.most_sessions
    assert host.udp.table.alone.most == 0
    host.change(web, names)
    assert host.tcp.most_sessions < most
    Session(host, names, server, "qa")
    host.change(web)
    assert host.tcp.most_sessions == most
    assert list(host.udp.table.flows.names()) == []
