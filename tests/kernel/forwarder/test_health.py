# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Health checks over TCP and UDP: dead servers, broken return paths, filtered probes, and what is not probed."""

from __future__ import annotations

import itertools
import os
import signal
import time

import pytest

from tests.kernel.forwarder.faults import (
    PROBES,
    SOURCES,
    BogonFilter,
    BrokenReturnPath,
    Unanswered,
    backends,
    state,
    states,
)
from tests.kernel.forwarder.sessions import SERVERS, Session, each_once, refused
from tests.support import udp
from tests.support.addresses import FAMILIES
from tests.support.forwarding import BACKENDS, Forwarder, make_config, make_service
from tests.support.waiting import FACTOR, eventually

PORT, BACKEND = 8000, 9000
KEPT, CAPPED, PROBED = 8001, 8002, 9001
INTERVAL, TIMEOUT, RISE, FALL = 0.5, 0.3, 2, 3
SLACK = 1.0 * FACTOR  # seconds a busy machine may be late
HEALTH = {"interval": INTERVAL, "timeout": TIMEOUT, "rise": RISE, "fall": FALL}
#: UDP has no handshake. The servers echo, so the request begins with the expected answer.
EXCHANGE = {"tcp": {}, "udp": {"request": "are you there?", "expect": "are you"}}
only_udp = pytest.mark.parametrize("protocol", ["udp"])


@pytest.fixture
def servers(lab, protocol):
    started = {name: SERVERS[protocol](lab, name, BACKEND) for name in BACKENDS}
    yield started
    for server in started.values():
        server.stop()


def document(lab, protocol, backend_port=BACKEND, health=(), **options):
    health = {**HEALTH, **EXCHANGE[protocol], **dict(health)}
    return make_config(make_service(lab, "web", PORT, backend_port, protocol=protocol, health=health, **options))


@pytest.fixture
def forwarder(lab, servers, protocol):
    with Forwarder(lab, document(lab, protocol)) as forwarder:
        wait_for(forwarder, "up")
        yield forwarder


def wait_for(forwarder, expected):
    """Wait until every backend has a state, in both families."""
    eventually(lambda: set(states(forwarder)) == {expected}, f"all are {expected}", forwarder.show)


def serving(lab, protocol, family, count=6):
    """The backends that serve so many new sessions of a family."""
    names = set()
    for _session in range(count):
        session = Session(lab, protocol, (getattr(lab["a"], family), PORT))
        names.add(session.name)
        session.end()
    return names


def assert_nobody_was_sent_to_a_dead_backend(forwarder):
    assert forwarder.log("backend skipped") == []
    assert {line["attempts"] for line in forwarder.log("connection")} <= {1}


def assert_refused(lab, forwarder, protocol, family):
    assert refused(lab, protocol, (getattr(lab["a"], family), PORT))
    eventually(lambda: forwarder.status()["services"][0]["refused_no_backend"] == 1, "it is counted", forwarder.show)
    if protocol == "tcp":
        (line,) = forwarder.connections(1)
        assert (line["ended"], line["attempts"]) == ("no backend is up", 0)
    else:
        assert forwarder.log("datagram refused")[0]["reason"] == "no backend is up"


FAILURES = {
    "tcp stopped": ("tcp", None, "no: ECONNREFUSED"),  # a refusal comes all the way back, and so does ICMP
    "udp stopped": ("udp", None, "no: ECONNREFUSED"),
    "udp silent": ("udp", b"", "no: ETIMEDOUT"),  # silence says nothing about the return path: it is what it was
    "udp wrong": ("udp", b"something else", "no: unexpected answer"),
}


@pytest.mark.parametrize(("protocol", "says", "server"), FAILURES.values(), ids=FAILURES)
def test_a_server_without_the_expected_answer_is_taken_out_and_comes_back(
    lab, servers, forwarder, protocol, says, server
):
    if says is None:
        servers["b"].stop()
    servers["b"].says = says
    failed = time.monotonic()
    eventually(lambda: states(forwarder).count("down") == 2, "both families know", forwarder.show)
    assert time.monotonic() - failed < FALL * INTERVAL + SLACK
    for family, found in backends(forwarder)["b"]["families"].items():
        assert (found["server"], found["return_path"]) == (server, "yes")
        assert serving(lab, protocol, family) == {"c", "d"}
    assert_nobody_was_sent_to_a_dead_backend(forwarder)
    if says is None:
        servers["b"] = SERVERS[protocol](lab, "b", BACKEND)
    servers["b"].says = None
    wait_for(forwarder, "up")
    eventually(lambda: all("b" in serving(lab, protocol, family) for family in FAMILIES), "it has clients again")


def test_a_broken_return_path_is_distinguished_from_a_dead_server(lab, forwarder, protocol, family):
    """In one family: b is taken out there and nowhere else, within fall x interval, and comes back when repaired."""
    (other,) = set(FAMILIES) - {family}
    with BrokenReturnPath(lab, family):
        broken = time.monotonic()
        eventually(lambda: state(forwarder, "b", family) == "return path broken", "it is known", forwarder.show)
        assert time.monotonic() - broken < FALL * INTERVAL + SLACK
        found = backends(forwarder)["b"]["families"]
        assert (found[family]["server"], found[family]["return_path"]) == ("yes", "no: ETIMEDOUT")
        assert found[other]["state"] == "up"
        assert [backends(forwarder)[name]["state"] for name in ("c", "d")] == ["up", "up"]
        assert forwarder.status()["alarms"] == []
        assert serving(lab, protocol, family) == {"c", "d"}
        assert serving(lab, protocol, other) == {"b", "c", "d"}
        assert_nobody_was_sent_to_a_dead_backend(forwarder)
    repaired = time.monotonic()
    wait_for(forwarder, "up")
    assert time.monotonic() - repaired < (RISE + 1) * INTERVAL + SLACK
    lines = [line for line in forwarder.log("backend state") if (line["backend"], line["family"]) == ("b", family)]
    assert [line["state"] for line in lines][-2:] == ["return path broken", "up"]
    eventually(lambda: "b" in serving(lab, protocol, family), "it has clients again")


@pytest.mark.parametrize("protocol", ["tcp"])
def test_a_silent_server_is_distinguished_from_a_broken_return_path(lab, servers, protocol):
    """The control: without an exchange the same server is up. More servers that do not serve: test_health_faults.py."""
    quick = {"interval": 0.2, "timeout": 0.2}
    config = document(lab, protocol, health={"expect_regex": "^[bcd]", **quick})
    with Forwarder(lab, config) as forwarder:
        wait_for(forwarder, "up")
        with BrokenReturnPath(lab, "ipv6"):
            eventually(lambda: state(forwarder, "b", "ipv6") == "return path broken", "it is known", forwarder.show)
            assert backends(forwarder)["b"]["families"]["ipv6"]["server"] == "yes", "the own address got an answer"
        wait_for(forwarder, "up")
        servers["b"].says = b""
        eventually(lambda: states(forwarder).count("down") == 2, "b is down", forwarder.show)
        for found in backends(forwarder)["b"]["families"].values():
            assert (found["server"], found["return_path"]) == ("no: connected, but no answer in time", "yes")
        forwarder.configure(document(lab, protocol, health=quick))
        assert forwarder.reload().returncode == 0
        wait_for(forwarder, "up")


def test_filtered_probes_take_no_backend_out_while_sessions_succeed(lab, forwarder, protocol):
    def everybody_serves():
        return [serving(lab, protocol, family) for family in FAMILIES] == [set(BACKENDS)] * 2

    with BogonFilter(lab) as bogons:
        until = time.monotonic() + 2 * FALL * INTERVAL
        while time.monotonic() < until:
            assert everybody_serves()
            assert set(states(forwarder)) == {"up"}
            time.sleep(0.1)
        assert min(bogons.seen()) >= FALL, "the probes were dropped all the time"
        assert forwarder.status()["alarms"] == []
        # The control: without clients nothing outranks the probes, and the common cause is named.
        wait_for(forwarder, "return path broken")
        eventually(lambda: len(forwarder.status()["alarms"]) == 2, "both families are alarmed")
        assert "local delivery" in forwarder.status()["alarms"][0]
        assert forwarder.log("local delivery")[0]["level"] == "error"
        assert everybody_serves(), "no client was ever refused"
    wait_for(forwarder, "up")
    assert forwarder.status()["alarms"] == []
    assert {(line["ended"], line["attempts"]) for line in forwarder.log("connection")} <= {("closed", 1)}


@each_once
def test_clients_are_refused_at_once_while_all_backends_are_down(lab, protocol, family):
    with Forwarder(lab, document(lab, protocol, backend_port=9)) as forwarder:
        wait_for(forwarder, "down")
        assert_refused(lab, forwarder, protocol, family)


@each_once
@pytest.mark.parametrize("on_all_down", ["refuse", "try_all"])
def test_without_probe_answers_try_all_serves_and_refuse_does_not(lab, servers, protocol, family, on_all_down):
    """Backends that hear neither the probes nor the proxy itself, but every client."""
    silenced = [*PROBES, *(getattr(lab["a"], family) for family in FAMILIES)]
    config = document(lab, protocol, on_all_down=on_all_down)
    with BogonFilter(lab, silenced), Forwarder(lab, config) as forwarder:
        wait_for(forwarder, "down")
        if on_all_down == "try_all":
            assert serving(lab, protocol, family) == set(BACKENDS)
        else:
            assert_refused(lab, forwarder, protocol, family)


@pytest.mark.parametrize("protocol", ["tcp"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_replaced_checker_continues_with_the_known_states(lab, servers, forwarder, protocol, end):
    servers["b"].stop()
    eventually(lambda: states(forwarder).count("down") == 2, "b is down in both families", forwarder.show)
    (checker,) = forwarder.children("l4-checker")
    os.kill(checker, end)
    eventually(lambda: forwarder.children("l4-checker") not in ([], [checker]), "it is replaced", forwarder.show)
    assert {state(forwarder, "b", family) for family in FAMILIES} == {"down"}
    servers["b"] = SERVERS[protocol](lab, "b", BACKEND)
    wait_for(forwarder, "up")
    assert forwarder.reload().returncode == 0
    assert set(states(forwarder)) == {"up"}, "what was known is known to the new generation"


@only_udp
def test_the_own_address_probes_only_if_the_spoofed_probe_fails(lab, servers, forwarder):
    def probers():
        """By family: which of the spoofed source and the own address b has seen."""
        seen = {peer[0] for peer in servers["b"].seen.copy()}
        return [seen & {SOURCES[family], getattr(lab["a"], family)} for family in FAMILIES]

    assert probers() == [{SOURCES[family]} for family in FAMILIES]
    servers["b"].says = b""
    both = [{SOURCES[family], getattr(lab["a"], family)} for family in FAMILIES]
    eventually(lambda: probers() == both, "both addresses probe", forwarder.show)


@only_udp
def test_health_port_is_probed_instead_of_a_range(lab, servers, protocol):
    """Nothing listens on the ports of the range. The control: without that port, all backends are down."""
    ranges = {"listen": [{"address": "0.0.0.0", "port": "5700-5704"}, {"address": "::", "port": "5700-5704"}]}
    config = document(lab, protocol, "9100-9104", health={"port": BACKEND}, **ranges)
    with Forwarder(lab, config) as forwarder:
        wait_for(forwarder, "up")
        del config["services"][0]["health"]["port"]
        forwarder.configure(config)
        assert forwarder.reload().returncode == 0
        wait_for(forwarder, "down")


@only_udp
def test_without_a_health_request_there_are_no_probes(lab, servers, protocol):
    """A backend whose state is unknown serves."""
    config = document(lab, protocol)
    for key in EXCHANGE[protocol]:
        del config["services"][0]["health"][key]
    with Forwarder(lab, config) as forwarder:
        assert [serving(lab, protocol, family) for family in FAMILIES] == [set(BACKENDS)] * 2
        time.sleep(2 * INTERVAL)
        assert set(states(forwarder)) == {"unknown"}
        assert not {peer[0] for server in servers.values() for peer in server.seen} & set(SOURCES.values())


# -- the open sessions of a backend that goes down -------------------------------------------------------------------


@pytest.fixture
def probed(lab, protocol):
    """Servers for the health checks alone."""
    started = [SERVERS[protocol](lab, name, PROBED) for name in BACKENDS]
    yield
    for server in started:
        server.stop()


def open_sessions(lab, protocol):
    """A session of each backend with each service in each family: {(port, family, backend): Session}."""
    found = {}
    for port, family in itertools.product((PORT, KEPT), FAMILIES):
        while {key for key in found if key[:2] == (port, family)} != {(port, family, name) for name in BACKENDS}:
            session = Session(lab, protocol, (getattr(lab["a"], family), port))
            found.setdefault((port, family, session.name), session)
            if session is not found[port, family, session.name]:
                session.end()  # another worker has chosen
    return found


@each_once
@pytest.mark.usefixtures("probed")
def test_the_sessions_of_a_backend_that_goes_down_end_in_that_family_if_the_service_says_so(
    lab, servers, protocol, family
):
    """Also those of an old generation. The control is a service that keeps them, and a return path that is broken."""
    health = {**HEALTH, **EXCHANGE[protocol], "interval": 0.2, "timeout": 0.2, "port": PROBED}
    services = [
        make_service(lab, name, port, BACKEND, protocol=protocol, health=health, **options)
        for name, port, options in (("web", PORT, {"on_down": "reset"}), ("kept", KEPT, {}))
    ]
    with Forwarder(lab, make_config(*services)) as forwarder:
        wait_for(forwarder, "up")
        sessions = [open_sessions(lab, protocol)]
        if protocol == "tcp":
            forwarder.configure(make_config(*services, workers=2))
            assert forwarder.reload().returncode == 0
            sessions.append(open_sessions(lab, protocol))
        with BrokenReturnPath(lab, family):
            eventually(lambda: state(forwarder, "b", family) == "return path broken", "it is known", forwarder.show)
        wait_for(forwarder, "up")
        (checker,) = forwarder.children("l4-checker")
        os.kill(checker, signal.SIGKILL)
        with Unanswered(lab, family, PROBED):
            eventually(lambda: state(forwarder, "b", family) == "down", "it is known", forwarder.show)
            ended = [of.pop((PORT, family, "b")) for of in sessions]
            if protocol == "tcp":
                for one in ended:
                    eventually(one.is_reset, "the client gets RST", forwarder.show, patience=SLACK)
                eventually(lambda: servers["b"].open == 6, "the backend gets RST too", forwarder.show)
            else:
                line = eventually(lambda: forwarder.log("session"), "it has ended", forwarder.show)[0]
                assert line["backend"] == "b"
                assert {udp.who(one._sock, one._to)[0] for one in ended} <= {"c", "d"}
            for of in sessions:
                for session in of.values():
                    session.go_on()
                    assert protocol == "udp" or not session.is_reset()
        lines = [line for line in forwarder.log() if line.get("ended") == "backend down"]
        assert [(line["service"], line["backend"]) for line in lines] == [("web", "b")] * len(sessions)
        web, kept = forwarder.status()["services"]
        assert (web["ended_backend_down"], kept["ended_backend_down"]) == (len(sessions), 0)
        for session in (*ended, *(one for of in sessions for one in of.values())):
            session.end()


# -- backends that flap ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["tcp"])
@pytest.mark.usefixtures("servers", "probed")
def test_a_backend_that_flaps_is_paused_in_that_family_also_by_the_next_checker_and_config(lab, protocol):
    """The control is a service without pauses, one of which nothing may be out, and the other family."""
    family, other = "ipv6", "ipv4"
    pause = 4.0 * FACTOR
    health = {**HEALTH, "interval": 0.2, "timeout": 0.2, "port": PROBED}
    services = [
        make_service(lab, "web", PORT, BACKEND, health={**health, "flap_pause": pause}),
        make_service(lab, "undamped", KEPT, BACKEND, health=health),
        make_service(lab, "capped", CAPPED, BACKEND, health={**health, "flap_pause": pause, "max_out": 32}),
    ]
    with Forwarder(lab, make_config(*services)) as forwarder:

        def is_served(of_family, port=PORT):
            names = set()
            for _session in range(6):
                session = Session(lab, protocol, (getattr(lab["a"], of_family), port))
                names.add(session.name)
                session.end()
            return "b" in names

        def shown():
            """The state of b in each service."""
            return [one["backends"][0]["families"][family]["state"] for one in forwarder.status()["services"]]

        eventually(lambda: shown() == ["up"] * 3, explain=forwarder.show)
        for expected in ("up", "paused"):
            with Unanswered(lab, family, PROBED):
                eventually(lambda: shown() == ["down"] * 3, "it is known", forwarder.show)
            eventually(lambda expected=expected: shown() == [expected, "up", expected], explain=forwarder.show)
        back = time.monotonic()
        found = backends(forwarder)["b"]["families"]
        assert found[family]["flaps"] == 1
        assert pause / 2 < found[family]["paused"] <= pause
        assert (found[other]["flaps"], found[other]["paused"]) == (0, 0)
        assert (is_served(family), is_served(other), is_served(family, KEPT)) == (False, True, True)
        assert is_served(family, CAPPED), "of three backends, 32 % are none"
        (checker,) = forwarder.children("l4-checker")
        os.kill(checker, signal.SIGKILL)
        services[0]["balance"] = "random"
        forwarder.configure(make_config(*services))
        assert forwarder.reload().returncode == 0
        eventually(lambda: forwarder.children("l4-checker") not in ([], [checker]), "it is replaced", forwarder.show)
        assert state(forwarder, "b", family) == "paused"
        assert not is_served(family)
        assert time.monotonic() < back + pause, "this machine is too slow for the test"
        eventually(lambda: state(forwarder, "b", family) == "up", "the pause is over", forwarder.show)
        assert time.monotonic() >= back + pause - SLACK
        eventually(lambda: is_served(family), "it has clients again", forwarder.show)
        eventually(lambda: forwarder.log("backend pause ended"), "it is logged", forwarder.show)
        lines = [(line["service"], line["backend"], line["family"]) for line in forwarder.log("backend paused")]
        assert sorted(lines) == [("capped", "b", family), ("web", "b", family)]
