# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Balancing over TCP and UDP: algorithms, weights, tiers, limits, overrides of operators and agents, slow start."""

from __future__ import annotations

import copy
import ipaddress
import time
from collections import Counter

import pytest

from tests.kernel.forwarder.faults import AGENT, BABBLE, Agents, babble, backends, state
from tests.kernel.forwarder.sessions import CLIENTS, SERVERS, Session, each_once
from tests.support import tcp
from tests.support.forwarding import BACKENDS, Forwarder, make_config, make_service
from tests.support.waiting import eventually

PORT, BACKEND = 7900, 9000
EVEN = 5  # standard deviations by which a share may differ


def document(lab, protocol, weights=(1, 1, 1), workers=1, names=BACKENDS, port=PORT, **options):
    service = make_service(lab, "web", port, BACKEND, names, protocol=protocol, **options)
    for backend, weight in zip(service["backends"], weights):
        backend["weight"] = weight
    return make_config(service, workers=workers)


@each_once
def test_round_robin_follows_the_weights(lab, ask, protocol, family):
    with Forwarder(lab, document(lab, protocol, (3, 2, 1))):
        assert ask.many(12) == {"b": 6, "c": 4, "d": 2}


@each_once
def test_least_connections_follows_the_weights_and_then_evens_out(lab, ask, protocol, family):
    options = {"balance": "least_connections", "idle_timeout": 4}
    with Forwarder(lab, document(lab, protocol, (1, 1, 2), **options)) as forwarder:
        assert ask.many(12) == {"b": 3, "c": 3, "d": 6}
        stay = [session for session in ask.sessions if session.name != "b"]
        for session in set(ask.sessions) - set(stay):
            session.end()

        def b_is_idle():
            for session in stay:
                session.go_on()
            time.sleep(0.1)
            return forwarder.status()["services"][0]["backends"][0]["active"] == 0

        eventually(b_is_idle, "b has none any more", forwarder.show)
        assert ask.many(3) == {"b": 3}


@each_once
def test_random_follows_the_weights(lab, ask, protocol, family):
    count, weights = 300, {"b": 1, "c": 1, "d": 2}
    with Forwarder(lab, document(lab, protocol, tuple(weights.values()), balance="random")):
        found = ask.many(count)
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        assert found[name] == pytest.approx(count * share, abs=EVEN * (count * share * (1 - share)) ** 0.5)


@pytest.mark.parametrize(("protocol", "balance"), [("tcp", "source_hash"), ("udp", "least_connections")])
def test_a_tier_serves_while_all_of_lower_priority_are_down(lab, session_servers, ask, protocol, family, balance):
    """Down and up again; then a config in place makes another tier the first."""
    health = {"interval": 0.3, "timeout": 0.2, "rise": 1, "fall": 2}
    exchange = {"request": "well?", "expect": "well"} if protocol == "udp" else {}
    config = document(lab, protocol, names=("b", "c", "d"), balance=balance, health={**health, **exchange})
    backends = config["services"][0]["backends"]
    backends[1]["priority"], backends[2]["backup"] = 1, True
    with Forwarder(lab, config) as forwarder:
        eventually(lambda: state(forwarder, "b", family) == "up", "b is up", forwarder.show)
        assert set(ask.clients(6).values()) == {"b"}
        session_servers[protocol, "b"].stop()
        eventually(lambda: state(forwarder, "b", family) == "down", "b is down", forwarder.show)
        assert set(ask.clients(6).values()) == {"c"}
        forwarder.ask("maintenance", backend="c")
        assert set(ask.clients(6).values()) == {"d"}, "the control: without c it is the backup"
        forwarder.ask("ready", backend="c")
        session_servers[protocol, "b"] = SERVERS[protocol](lab, "b", BACKEND)
        eventually(lambda: state(forwarder, "b", family) == "up", "b is up again", forwarder.show)
        assert set(ask.clients(6).values()) == {"b"}
        workers = forwarder.workers()
        backends[0]["priority"] = 2
        forwarder.configure(config)
        assert forwarder.reload().returncode == 0
        assert set(ask.clients(6).values()) == {"c"}
        assert forwarder.workers() == workers, "the config was taken in place"


@each_once
def test_at_max_connections_the_next_backend_serves_and_then_clients_are_refused(lab, ask, protocol, family):
    config = document(lab, protocol, names=("b", "c"))
    for backend, most in zip(config["services"][0]["backends"], (1, 3)):
        backend["max_connections"] = most
    with Forwarder(lab, config) as forwarder:
        assert ask.many(4) == {"b": 1, "c": 3}
        assert ask.refused()
        for session in ask.sessions:
            session.go_on()
        eventually(lambda: forwarder.status()["services"][0]["refused_no_backend"], "the refusal is counted")
        event, key = ("connection", "ended") if protocol == "tcp" else ("datagram refused", "reason")
        assert forwarder.log(event)[-1][key] == "every backend is at its limit"


@each_once
@pytest.mark.parametrize("order", ["drain", "maintenance", "disable"])
def test_drain_maintenance_and_enabled_false_keep_new_sessions_away_over_reloads(lab, ask, protocol, family, order):
    """Existing sessions of such a backend continue, also UDP sessions, which move to the new workers."""
    config = document(lab, protocol, workers=2)
    disabled = copy.deepcopy(config)
    disabled["services"][0]["backends"][0]["enabled"] = False

    def set_state(forwarder, order):
        if order in ("disable", "enable"):
            forwarder.configure(disabled if order == "disable" else config)
            assert forwarder.reload().returncode == 0
        else:
            forwarder.ask(order, backend="b")

    with Forwarder(lab, config) as forwarder:
        ask.many(12)
        before = [session for session in ask.sessions if session.name == "b"]
        assert before
        set_state(forwarder, order)
        assert set(ask.many(8)) == {"c", "d"}
        assert forwarder.reload().returncode == 0
        assert set(ask.many(8)) == {"c", "d"}
        for session in before:
            session.go_on()
        listed = forwarder.ask("sessions", backend="b")
        assert (listed["count"], {session["client"] for session in listed["sessions"]}) == (
            len(before),
            {getattr(lab["client"], family)},
        )
        if order == "disable":
            assert forwarder.ask("ready", backend="b")["reason"] == "disabled"
            assert set(ask.many(4)) == {"c", "d"}
        set_state(forwarder, "enable" if order == "disable" else "ready")
        assert "b" in ask.many(8)
        assert forwarder.status()["restarts"] == 0


def assert_listed(lab, forwarder, ask, network):
    """The last session alone is of ``network``. Its client has moved the most bytes, another has the most sessions."""
    last, many = ask.sessions[-1], getattr(lab["client"], ask.family)
    found = forwarder.ask("sessions", client=network)
    assert [(one["client"], one["source"], one["backend"]) for one in found["sessions"]] == [
        (network.partition("/")[0],) * 2 + (last.name,)
    ]
    for _time in range(30):
        last.go_on()

    def clients(by):
        listed = forwarder.ask("clients", by=by)
        assert listed["count"] == len(ask.sessions)
        return [(one["client"], one["sessions"]) for one in listed["clients"]]

    few, more = (
        str(ipaddress.ip_network((one, 64 if ask.family == "ipv6" else 32), False)).removesuffix("/32")
        for one in (network.partition("/")[0], many)
    )
    assert clients("sessions") == [(more, len(ask.sessions) - 1), (few, 1)]
    eventually(lambda: clients("bytes")[0] == (few, 1), "what it has sent is counted", forwarder.show)


def test_kill_ends_the_selected_sessions_and_no_others_also_in_an_old_generation(lab, ask, protocol, family):
    address = CLIENTS[family].format(7)
    network = f"{address}/{32 if family == 'ipv4' else 128}"
    with Forwarder(lab, document(lab, protocol, workers=2)) as forwarder:

        def kill(**selectors):
            return forwarder.ask("kill", **selectors)["ended"]

        served = ask.many(6)
        ask.sessions.append(Session(lab, protocol, (getattr(lab["a"], family), PORT), address))
        assert_listed(lab, forwarder, ask, network)
        assert kill(client=network, backend=next(name for name in BACKENDS if name != ask.sessions[-1].name)) == 0
        assert (kill(client=network), kill(client=address), kill(backend="b")) == (1, 0, served["b"])
        assert forwarder.ask("kill", generation=2)["error"] == "there is no generation 2 with workers (there are 1)"
        forwarder.configure(document(lab, protocol, workers=1))
        assert forwarder.reload().returncode == 0
        ask.one()
        if protocol == "tcp":  # UDP sessions have moved to the new generation
            (old,) = forwarder.status()["old_generations"]
            assert (old["generation"], old["seconds_left"]) == (1, None)
            assert old["sessions"] == served["c"] + served["d"]
            eventually(lambda: forwarder.status()["old_generations"][0]["memory"] > 1 << 20, "it is measured")
            assert (kill(generation=1, backend="c"), kill(generation=1)) == (served["c"], served["d"])
            eventually(lambda: not forwarder.status()["old_generations"], "the old generation ends", forwarder.show)
        name = forwarder.status()["services"][0]["name"]
        assert kill(service=name) == (1 if protocol == "tcp" else 7 - served["b"])
        assert forwarder.ask("sessions")["count"] == 0
        for session in ask.sessions:
            assert session.is_reset() == (protocol == "tcp")
        lines = forwarder.log("connection" if protocol == "tcp" else "session")
        stopped = served["d"] if protocol == "tcp" else 0
        assert Counter(line["ended"] for line in lines) == Counter(killed=8 - stopped, stopped=stopped)


@each_once
def test_a_weight_set_by_an_operator_applies_at_once(lab, ask, protocol, family):
    with Forwarder(lab, document(lab, protocol)) as forwarder:
        forwarder.ask("weight", backend="b", weight=4)
        assert ask.many(12) == {"b": 8, "c": 2, "d": 2}


@each_once
def test_an_agent_drains_its_backend_takes_it_down_and_changes_its_weight(lab, ask, protocol, family):
    """Each word, and the one that ends it; a reload and an agent that stops keep the last word."""
    config = document(lab, protocol, (2, 2, 2), workers=2)
    service = config["services"][0]
    service["health"]["agent"] = {"port": AGENT, "interval": 0.2}
    if family == "ipv6":  # IPv6 alone: else the IPv4 address is asked
        service["listen"] = service["listen"][1:]
        for backend in service["backends"]:
            del backend["ipv4"]
    with Forwarder(lab, config) as forwarder:
        with Agents(lab, b=b"up 50%\n") as agents:
            agents.say(forwarder, b=b"up 50%\n")
            eventually(lambda: len(agents.seen) == 3, "each agent is asked")
            assert agents.seen == {(name, getattr(lab["a"], family)) for name in BACKENDS}
            eventually(lambda: backends(forwarder)["c"]["agent"]["answer"] == "no: EBADMSG", "it closes without a line")
            held = ask.many(40)
            assert held["c"] == pytest.approx(16, abs=2)
            assert held["b"] == pytest.approx(8, abs=2)
            agents.say(forwarder, b=b"drain\n")
            assert backends(forwarder)["b"]["state"] == "draining"
            assert set(ask.many(6)) == {"c", "d"}
            for session in ask.sessions[:40]:
                session.go_on()
            agents.say(forwarder, b=b"ready 100% # nothing to say\n")
            assert "b" in ask.many(12)
            agents.say(forwarder, b=b"down # disk full\n", c=b"maint\n")
            assert set(ask.many(6)) == {"d"}
            forwarder.ask("maintenance", backend="d")
            assert ask.refused(), "the control: there is no other backend"
            forwarder.ask("ready", backend="d")
            assert forwarder.ask("ready", backend="c")["agent"] == ["web"]
            found = backends(forwarder)
            assert [found[name]["state"] for name in BACKENDS] == ["down", "maintenance", "unknown"]
            assert (found["b"]["agent"]["reason"], found["c"]["admin"]) == ("disk full", "ready")
        gone = "no: ECONNREFUSED"
        eventually(lambda: backends(forwarder)["b"]["agent"]["answer"] == gone, "it is gone", forwarder.show)
        workers = forwarder.workers()
        forwarder.configure({**config, "services": [{**service, "connect_timeout": 2}]})
        assert forwarder.reload().returncode == 0
        assert forwarder.workers() == workers, "the config was taken in place"
        assert set(ask.many(6)) == {"d"}, "the last word stays"
        with Agents(lab, b=b"up\n", c=b"ready\n") as agents:
            agents.say(forwarder, b=b"up\n", c=b"ready\n")
            assert set(ask.many(12)) == set(BACKENDS)
        words = [(line["backend"], line["word"]) for line in forwarder.log("agent")]
        assert [word for name, word in words if name == "b"] == ["up", "drain up", "ready up", "ready down", "ready up"]


@pytest.mark.ipv4_only
def test_an_agent_that_babbles_changes_nothing_and_hurts_neither_the_checker_nor_other_agents(lab, session_servers):
    health = {"interval": 0.3, "timeout": 0.3, "agent": {"port": AGENT, "interval": 0.3}}
    with Forwarder(lab, document(lab, "tcp", names=("b", "c"), health=health)) as forwarder, Agents(lab, "c") as agents:
        eventually(lambda: backends(forwarder)["b"]["state"] == "up", "b is up", forwarder.show)
        checker = forwarder.children("l4-checker")
        for number, (kind, error) in enumerate(BABBLE.items()):
            with tcp.serving(lab, ["b"], AGENT, lambda sock, _peer, kind=kind: babble(kind, sock)):
                agents.say(forwarder, c=b"ready\n" if number % 2 else b"drain\n")

                def known(expected=f"no: {error}"):
                    return backends(forwarder)["b"]["agent"]["answer"] == expected

                eventually(known, kind, forwarder.show)
        found = backends(forwarder)["b"]
        assert (found["state"], found["agent"]["word"], found["agent"]["age"]) == ("up", "", None)
        # The control is the example of the guide: systemd starts cat(1) for each question.
        (lab.tmp / "says").write_text("fail # on purpose\n", encoding="ascii")
        systemd = ["systemd-socket-activate", "--accept", "--inetd", "-l", f"{lab['b'].ipv4}:{AGENT}"]
        process = lab["b"].spawn([*systemd, "cat", str(lab.tmp / "says")])
        eventually(lambda: backends(forwarder)["b"]["state"] == "down", "the agent of b says fail", forwarder.show)
        process.terminate()
        process.wait()
        assert backends(forwarder)["b"]["agent"]["reason"] == "on purpose"
        assert forwarder.children("l4-checker") == checker
        assert not forwarder.log("defect")


@each_once
def test_a_recovered_backend_starts_slowly(lab, session_servers, ask, protocol, family):
    slow, count = 5.0, 30
    health = {"interval": 0.4, "timeout": 0.3, "rise": 2, "fall": 2}
    exchange = {"request": "well?", "expect": "well"} if protocol == "udp" else {}
    config = document(lab, protocol, health={**health, **exchange}, slow_start=slow)
    with Forwarder(lab, config) as forwarder:
        eventually(lambda: state(forwarder, "b", family) == "up", "b is up", forwarder.show)
        assert ask.many(count)["b"] == count / 3, "who was never down does not start slowly"
        session_servers[protocol, "b"].stop()
        eventually(lambda: state(forwarder, "b", family) == "down", "b is down", forwarder.show)
        session_servers[protocol, "b"] = SERVERS[protocol](lab, "b", BACKEND)
        eventually(lambda: state(forwarder, "b", family) == "up", "b is up again", forwarder.show)
        begun = time.monotonic()
        early = ask.many(count)["b"]
        assert time.monotonic() - begun < slow / 2, "the machine is too slow for this test"
        # At most half its weight: half of 1 in 2.5.
        assert early <= count / 5
        time.sleep(max(0, begun + slow + 0.5 - time.monotonic()))
        assert ask.many(count)["b"] == pytest.approx(count / 3, abs=2), forwarder.show()


@pytest.mark.parametrize("protocol", ["udp"])
def test_udp_sessions_are_spread_evenly_over_the_workers(lab, ask, protocol, family):
    """test_workers.py has the same test for connections."""
    count = 300
    with Forwarder(lab, document(lab, protocol, workers=2)) as forwarder:
        ask.many(count)
        shares = [worker["sessions"] for worker in forwarder.status()["workers"]]
    assert sum(shares) == count
    assert shares[0] == pytest.approx(count / 2, abs=EVEN * (count / 4) ** 0.5)


def test_every_backend_is_tried_until_one_accepts(lab, session_servers, ask, protocol, family):
    """Two of three backends refuse: every client is served, the first ones at the second or third attempt."""
    config = document(lab, protocol)
    for backend in config["services"][0]["backends"][:2]:
        backend["port"] = 9  # nothing listens there
    with Forwarder(lab, config) as forwarder:
        # A UDP client has to repeat its datagram: the first one is lost.
        assert ask.many(12) == {"d": 12}
        assert {line["backend"] for line in forwarder.log("backend skipped")} == {"b", "c"}
