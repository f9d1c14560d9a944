# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Both health questions over UDP: an exchange, as the service says; who answers it wrong, late, or past the proxy."""

from __future__ import annotations

import time

import pytest

from tests.kernel.forwarder.faults import (
    FALL,
    HEALTH,
    INTERVAL,
    PROBES,
    RISE,
    SLACK,
    SOURCES,
    BogonFilter,
    BrokenReturnPath,
    backends,
    state,
    states,
)
from tests.support import udp
from tests.support.addresses import FAMILIES
from tests.support.forwarding import Forwarder, make_config, make_service
from tests.support.waiting import eventually

ECHO, BACKEND = 5600, 9000
#: The servers echo, so what is sent begins with what is expected.
EXCHANGE = {"request": "are you there?", "expect": "are you"}


@pytest.fixture
def servers(lab):
    with udp.serving(lab, BACKEND) as servers:
        yield servers


def document(lab, health=(), **options):
    health = {**HEALTH, **EXCHANGE, **dict(health)}
    return make_config(make_service(lab, "echo", ECHO, BACKEND, protocol="udp", health=health, **options))


@pytest.fixture
def forwarder(lab, servers):
    with Forwarder(lab, document(lab)) as forwarder:
        eventually(lambda: set(states(forwarder)) == {"up"}, "all are up", forwarder.show)
        yield forwarder


def names(lab, family, count=6):
    """Who answers so many new sessions."""
    to, found = (getattr(lab["a"], family), ECHO), set()
    for _session in range(count):
        with udp.client(lab, to[0]) as sock:
            found.add(udp.who(sock, to)[0])
    return found


def test_the_own_address_probes_only_if_the_spoofed_probe_fails(lab, servers, forwarder):
    """While the spoofed question is answered it is the only one; when it stays away our own address asks as well."""

    def askers(family):
        sizes = {peer[0]: sizes for peer, sizes in servers["b"].seen.copy().items()}
        return {address for address in (SOURCES[family], getattr(lab["a"], family)) if address in sizes}

    assert [askers(family) for family in FAMILIES] == [{SOURCES[family]} for family in FAMILIES]
    servers["b"].says = b""
    eventually(
        lambda: all(askers(family) == {SOURCES[family], getattr(lab["a"], family)} for family in FAMILIES),
        "both ask",
        forwarder.show,
    )


@pytest.mark.parametrize(
    ("says", "server", "path"),
    [
        (None, "no: ECONNREFUSED", "yes"),  # it is stopped, and ICMP says so all the way back
        (b"", "no: ETIMEDOUT", "yes"),  # silence says nothing about the way back: that is what it was before
        (b"something else", "no: EBADMSG", "yes"),
    ],
    ids=["stopped", "silent", "wrong"],
)
def test_a_server_without_the_expected_answer_is_taken_out(lab, servers, forwarder, says, server, path):
    if says is None:
        servers["b"].stop()
    servers["b"].says = says
    begun = time.monotonic()
    eventually(lambda: states(forwarder).count("down") == 2, "both families know", forwarder.show)
    assert time.monotonic() - begun < FALL * INTERVAL + SLACK
    for family, found in backends(forwarder)["b"]["families"].items():
        assert (found["server"], found["return_path"]) == (server, path)
        assert names(lab, family) == {"c", "d"}
    assert forwarder.log("backend skipped") == [], "nobody was sent to it"
    if says is None:
        servers["b"] = udp.Server(lab, "b", BACKEND)
    servers["b"].says = None
    eventually(lambda: set(states(forwarder)) == {"up"}, "b is up again", forwarder.show)
    assert "b" in names(lab, "ipv4") & names(lab, "ipv6")


def test_a_broken_return_path_is_distinguished_from_a_dead_server(lab, forwarder, family):
    """In one family: b is taken out there and nowhere else, within fall x interval, and comes back when repaired."""
    (other,) = set(FAMILIES) - {family}
    with BrokenReturnPath(lab, family):
        broken = time.monotonic()
        eventually(lambda: state(forwarder, "b", family) == "return path broken", "it is known", forwarder.show)
        assert time.monotonic() - broken < FALL * INTERVAL + SLACK
        found = backends(forwarder)["b"]["families"]
        assert (found[family]["server"], found[family]["return_path"]) == ("yes", "no: ETIMEDOUT")
        assert found[other]["state"] == "up"
        assert names(lab, family) == {"c", "d"}
        assert names(lab, other) == {"b", "c", "d"}
        assert forwarder.status()["alarms"] == []
    repaired = time.monotonic()
    eventually(lambda: set(states(forwarder)) == {"up"}, "it comes back", forwarder.show)
    assert time.monotonic() - repaired < (RISE + 1) * INTERVAL + SLACK
    assert names(lab, family) == {"b", "c", "d"}


def test_filtered_probes_take_no_backend_out_while_sessions_are_answered(lab, forwarder):
    with BogonFilter(lab) as bogons:
        until = time.monotonic() + 2 * FALL * INTERVAL
        while time.monotonic() < until:
            assert [names(lab, family) for family in FAMILIES] == [{"b", "c", "d"}] * 2
            assert set(states(forwarder)) == {"up"}
            time.sleep(0.2)
        assert min(bogons.seen()) >= FALL, "the probes were dropped all the time"
        assert forwarder.status()["alarms"] == []
        # The control: without clients nothing outranks the probes, and the common cause is named.
        eventually(lambda: set(states(forwarder)) == {"return path broken"}, "the probes count", forwarder.show)
        eventually(lambda: len(forwarder.status()["alarms"]) == 2, "both families are alarmed")
        assert [names(lab, family) for family in FAMILIES] == [{"b", "c", "d"}] * 2, "no client was ever refused"
    eventually(lambda: set(states(forwarder)) == {"up"}, "all is well again", forwarder.show)


@pytest.mark.parametrize("on_all_down", ["refuse", "try_all"])
def test_without_probe_answers_try_all_serves_and_refuse_does_not(lab, servers, family, on_all_down):
    """Backends that hear neither the probes nor the proxy itself, but every client."""
    own = [getattr(lab["a"], one) for one in FAMILIES]
    config = document(lab, health={"interval": 0.5, "timeout": 0.3}, on_all_down=on_all_down)
    with BogonFilter(lab, [*PROBES, *own]), Forwarder(lab, config) as forwarder:
        eventually(lambda: set(states(forwarder)) == {"down"}, "all are down", forwarder.show)
        if on_all_down == "try_all":
            assert names(lab, family) == {"b", "c", "d"}
            return
        to = (getattr(lab["a"], family), ECHO)
        with udp.client(lab, to[0]) as sock:
            assert udp.silent(sock, udp.QUESTION, to)
        assert forwarder.log("datagram refused")[0]["reason"] == "no backend is up"
        eventually(
            lambda: forwarder.status()["services"][0]["refused_no_backend"] == 1, "it is counted", forwarder.show
        )


@pytest.mark.ipv4_only
def test_health_port_is_probed_instead_of_a_range(lab, servers):
    """Nothing listens on the ports of the range; the control says what is said of them without that port."""
    ranges = {"listen": [{"address": "0.0.0.0", "port": "5700-5704"}, {"address": "::", "port": "5700-5704"}]}
    config = document(lab, health={"port": BACKEND}, **ranges)
    for backend in config["services"][0]["backends"]:
        backend["port"] = "9100-9104"
    with Forwarder(lab, config) as forwarder:
        eventually(lambda: set(states(forwarder)) == {"up"}, "all are up", forwarder.show)
        del config["services"][0]["health"]["port"]
        forwarder.configure(config)
        assert forwarder.reload().returncode == 0
        eventually(lambda: set(states(forwarder)) == {"down"}, "all are down", forwarder.show)


@pytest.mark.ipv4_only
def test_without_a_health_request_there_are_no_probes(lab, servers):
    """UDP has no handshake: what is unknown is served."""
    config = document(lab)
    for key in EXCHANGE:
        del config["services"][0]["health"][key]
    with Forwarder(lab, config) as forwarder:
        assert names(lab, "ipv4") == {"b", "c", "d"}
        time.sleep(2 * INTERVAL)
        assert set(states(forwarder)) == {"unknown"}
        assert not {peer[0] for server in servers.values() for peer in server.seen} & set(SOURCES.values())
