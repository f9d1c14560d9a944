# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checker: a server that is down, a return path that is broken, probes that are dropped, and what is not asked."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.kernel.forwarder.faults import (
    FALL,
    HEALTH,
    INTERVAL,
    PROBES,
    RISE,
    SLACK,
    BogonFilter,
    BrokenReturnPath,
    backends,
    state,
    states,
)
from tests.support import tcp
from tests.support.addresses import FAMILIES
from tests.support.forwarding import BACKENDS, Forwarder, make_config, make_service
from tests.support.waiting import eventually

WEB = 8000


@pytest.fixture
def servers(lab):
    started = {name: lab.nginx(name, ports=[8080]) for name in BACKENDS}
    yield started
    for server in started.values():
        server.stop()


@pytest.fixture
def forwarder(lab, servers):
    with Forwarder(lab, make_config(make_service(lab, "web", WEB, 8080, health=HEALTH))) as forwarder:
        eventually(lambda: set(states(forwarder)) == {"up"}, "all are up", forwarder.show)
        yield forwarder


def bodies(lab, count=12, families=FAMILIES):
    return {tcp.get(lab, getattr(lab["a"], family), WEB) for _turn in range(count) for family in families}


def test_a_server_that_is_down_is_taken_out_and_comes_back(lab, servers, forwarder):
    servers["b"].stop()
    stopped = time.monotonic()
    eventually(lambda: states(forwarder).count("down") == 2, "both families know", forwarder.show)
    assert time.monotonic() - stopped < FALL * INTERVAL + SLACK
    found = backends(forwarder)["b"]["families"]["ipv4"]
    assert (found["server"], found["return_path"]) == ("no: ECONNREFUSED", "yes"), "a refusal came all the way back"
    assert bodies(lab) == {b"c\n", b"d\n"}
    failures = len([line for line in forwarder.log("connection") if line["attempts"] > 1])
    assert failures == 0, "nobody was sent to it"
    servers["b"].start()
    eventually(lambda: set(states(forwarder)) == {"up"}, "b is up again", forwarder.show)
    eventually(lambda: b"b\n" in bodies(lab), "it has clients again")


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
        assert [backends(forwarder)[name]["state"] for name in ("c", "d")] == ["up", "up"]
        assert forwarder.status()["alarms"] == []
        assert bodies(lab, families=[family]) == {b"c\n", b"d\n"}
        assert bodies(lab, families=[other]) == {b"b\n", b"c\n", b"d\n"}
        assert {line["attempts"] for line in forwarder.log("connection")} == {1}, "nobody was sent to it"
    repaired = time.monotonic()
    eventually(lambda: set(states(forwarder)) == {"up"}, "it comes back", forwarder.show)
    assert time.monotonic() - repaired < (RISE + 1) * INTERVAL + SLACK
    lines = [line for line in forwarder.log("backend state") if (line["backend"], line["family"]) == ("b", family)]
    assert [line["state"] for line in lines][-2:] == ["return path broken", "up"]
    eventually(lambda: b"b\n" in bodies(lab, families=[family]), "it has clients again")


def test_filtered_probes_take_no_backend_out_while_connections_succeed(lab, forwarder):
    with BogonFilter(lab) as bogons:
        until = time.monotonic() + 2 * FALL * INTERVAL
        while time.monotonic() < until:
            assert bodies(lab, 6) == {b"b\n", b"c\n", b"d\n"}
            assert set(states(forwarder)) == {"up"}
            time.sleep(0.2)
        assert min(bogons.seen()) >= FALL, "the probes were dropped all the time"
        assert forwarder.status()["alarms"] == []
        # The control: without clients nothing outranks the probes, and the common cause is named.
        eventually(lambda: set(states(forwarder)) == {"return path broken"}, "the probes count", forwarder.show)
        eventually(lambda: len(forwarder.status()["alarms"]) == 2, "both families are alarmed")
        assert "local delivery" in forwarder.status()["alarms"][0]
        assert forwarder.log("local delivery")[0]["level"] == "error"
        assert bodies(lab) == {b"b\n", b"c\n", b"d\n"}, "no client was ever refused"
    eventually(lambda: set(states(forwarder)) == {"up"}, "all is well again", forwarder.show)
    assert forwarder.status()["alarms"] == []
    assert {(line["ended"], line["attempts"]) for line in forwarder.log("connection")} == {("closed", 1)}


def test_clients_are_refused_at_once_while_all_backends_are_down(lab, servers, family):
    refuse = make_service(lab, "refuse", WEB, 9, health={"interval": 0.5, "timeout": 0.3})
    with Forwarder(lab, make_config(refuse)) as forwarder:
        eventually(lambda: set(states(forwarder)) == {"down"}, "all are down", forwarder.show)
        with pytest.raises(ConnectionResetError), tcp.connect(lab, getattr(lab["a"], family), WEB) as sock:
            sock.recv(1)
        (line,) = forwarder.connections(1)
        assert (line["ended"], line["attempts"]) == ("no backend is up", 0)
        eventually(
            lambda: forwarder.status()["services"][0]["refused_no_backend"] == 1, "it is counted", forwarder.show
        )


@pytest.mark.parametrize("on_all_down", ["refuse", "try_all"])
def test_without_probe_answers_try_all_serves_and_refuse_does_not(lab, servers, family, on_all_down):
    """Backends that hear neither the probes nor the proxy itself, but every client."""
    own = [getattr(lab["a"], one) for one in FAMILIES]
    document = make_service(lab, "web", WEB, 8080, health={"interval": 0.5, "timeout": 0.3}, on_all_down=on_all_down)
    with BogonFilter(lab, [*PROBES, *own]), Forwarder(lab, make_config(document)) as forwarder:
        eventually(lambda: set(states(forwarder)) == {"down"}, "all are down", forwarder.show)
        if on_all_down == "try_all":
            assert bodies(lab, families=[family]) == {b"b\n", b"c\n", b"d\n"}
        else:
            with pytest.raises(ConnectionResetError):
                bodies(lab, families=[family])


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_replaced_checker_continues_with_the_known_states(lab, servers, forwarder, end):
    servers["b"].stop()
    eventually(lambda: states(forwarder).count("down") == 2, "b is down in both families", forwarder.show)
    (checker,) = forwarder.children("l4-checker")
    os.kill(checker, end)
    eventually(lambda: forwarder.children("l4-checker") not in ([], [checker]), "it is replaced", forwarder.show)
    assert {state(forwarder, "b", family) for family in FAMILIES} == {"down"}
    servers["b"].start()
    eventually(lambda: set(states(forwarder)) == {"up"}, "b is up again", forwarder.show)
    assert forwarder.reload().returncode == 0
    assert set(states(forwarder)) == {"up"}, "what was known is known to the new generation"
