# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checker: a server that is down, a return path that is broken, probes that are dropped, and what is not asked."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.kernel import forwarder_lab as fl

WEB = 8000
INTERVAL, TIMEOUT, FALL = 1.0, 0.5, 3
HEALTH = {"interval": INTERVAL, "timeout": TIMEOUT, "rise": 2, "fall": FALL}
SOURCES = {"ipv4": f"198.51.100.{fl.PROXY_ID}", "ipv6": f"2001:db8:ffff::{fl.PROXY_ID}"}
SLACK = 1.0  # seconds a busy machine may be late


@pytest.fixture(scope="module")
def lab():
    with fl.raise_lab("h") as lab:
        fl.wire(lab)
        yield lab


@pytest.fixture
def servers(lab):
    started = {name: lab.nginx(name, ports=[8080]) for name in fl.BACKENDS}
    yield started
    for server in started.values():
        server.stop()


@pytest.fixture
def forwarder(lab, servers):
    with fl.Forwarder(lab, fl.config(fl.service(lab, "web", WEB, 8080, health=HEALTH))) as forwarder:
        fl.wait(lambda: set(states(forwarder)) == {"up"}, "all are up", forwarder.show)
        yield forwarder


def backends(forwarder):
    return {one["name"]: one for one in forwarder.status()["services"][0]["backends"]}


def states(forwarder):
    """The state of every backend and family."""
    return [one["state"] for backend in backends(forwarder).values() for one in backend["families"].values()]


def bodies(lab, count=12):
    return {fl.get(lab, getattr(lab["a"], family), WEB) for _turn in range(count) for family in ("ipv4", "ipv6")}


class BrokenReturnPath:
    """The rule that sends b's replies back to a is gone: they leave by b's default route."""

    def __init__(self, lab):
        self.host = lab["b"]
        self.rule = ["fwmark", f"{fl.PROXY_ID}/0xff", "lookup", str(fl.TABLE), "pref", "1100"]

    def __enter__(self):
        for family in ("-4", "-6"):
            self.host.run(["ip", family, "rule", "del", *self.rule])
        return self

    def __exit__(self, *exc_info):
        for family in ("-4", "-6"):
            self.host.run(["ip", family, "rule", "add", *self.rule])


class BogonFilter:
    """Backends drop what comes from the health sources, and nothing else; the drops are counted."""

    def __init__(self, lab):
        self.hosts = [lab[name] for name in fl.BACKENDS]

    def __enter__(self):
        ruleset = (
            "table inet bogon {\n counter seen { }\n chain in {\n  type filter hook prerouting priority raw\n"
            f"  ip saddr {SOURCES['ipv4']} counter name seen drop\n"
            f"  ip6 saddr {SOURCES['ipv6']} counter name seen drop\n }}\n}}\n"
        )
        for host in self.hosts:
            host.run(["nft", "-f", "-"], input=ruleset)
        return self

    def seen(self):
        listings = [host.run(["nft", "list", "counter", "inet", "bogon", "seen"]).stdout for host in self.hosts]
        return [int(listing.split("packets")[1].split()[0]) for listing in listings]

    def __exit__(self, *exc_info):
        for host in self.hosts:
            host.run(["nft", "delete", "table", "inet", "bogon"])


def test_a_server_that_is_down_is_taken_out_and_comes_back(lab, servers, forwarder):
    servers["b"].stop()
    stopped = time.monotonic()
    fl.wait(lambda: states(forwarder).count("down") == 2, "both families know", forwarder.show)
    assert time.monotonic() - stopped < FALL * INTERVAL + SLACK
    found = backends(forwarder)["b"]["families"]["ipv4"]
    assert (found["server"], found["return_path"]) == ("no: ECONNREFUSED", "yes"), "a refusal came all the way back"
    assert bodies(lab) == {b"c\n", b"d\n"}
    failures = len([line for line in forwarder.log("connection") if line["attempts"] > 1])
    assert failures == 0, "nobody was sent to it"
    servers["b"].start()
    fl.wait(lambda: set(states(forwarder)) == {"up"}, "b is up again", forwarder.show)
    fl.wait(lambda: b"b\n" in bodies(lab), "it has clients again")


def test_a_broken_return_path_is_told_from_a_server_that_is_down(lab, forwarder):
    with BrokenReturnPath(lab):
        broken = time.monotonic()
        fl.wait(lambda: states(forwarder).count("return path broken") == 2, "both families know", forwarder.show)
        assert time.monotonic() - broken < FALL * INTERVAL + SLACK
        for found in backends(forwarder)["b"]["families"].values():
            assert (found["server"], found["return_path"]) == ("yes", "no: ETIMEDOUT")
        assert [backends(forwarder)[name]["state"] for name in ("c", "d")] == ["up", "up"]
        assert forwarder.status()["alarms"] == []
        assert bodies(lab) == {b"c\n", b"d\n"}
        assert {line["attempts"] for line in forwarder.log("connection")} == {1}, "nobody was sent to it"
    repaired = time.monotonic()
    fl.wait(lambda: set(states(forwarder)) == {"up"}, "it comes back", forwarder.show)
    assert time.monotonic() - repaired < 3 * INTERVAL + SLACK
    lines = [line["state"] for line in forwarder.log("backend state") if line["backend"] == "b"]
    assert lines[-4:] == ["return path broken"] * 2 + ["up"] * 2
    fl.wait(lambda: b"b\n" in bodies(lab), "it has clients again")


def test_a_filter_on_the_probes_takes_nobody_out_while_real_connections_succeed(lab, forwarder):
    with BogonFilter(lab) as bogons:
        until = time.monotonic() + 2 * FALL * INTERVAL
        while time.monotonic() < until:
            assert bodies(lab, 6) == {b"b\n", b"c\n", b"d\n"}
            assert set(states(forwarder)) == {"up"}
            time.sleep(0.2)
        assert min(bogons.seen()) >= FALL, "the probes were dropped all the time"
        assert forwarder.status()["alarms"] == []
        # The control: without clients nothing outranks the probes, and the common cause is named.
        fl.wait(lambda: set(states(forwarder)) == {"return path broken"}, "the probes count", forwarder.show)
        fl.wait(lambda: len(forwarder.status()["alarms"]) == 2, "both families are alarmed")
        assert "local delivery" in forwarder.status()["alarms"][0]
        assert forwarder.log("local delivery")[0]["level"] == "error"
        assert bodies(lab) == {b"b\n", b"c\n", b"d\n"}, "no client was ever refused"
    fl.wait(lambda: set(states(forwarder)) == {"up"}, "all is well again", forwarder.show)
    assert forwarder.status()["alarms"] == []
    assert {(line["ended"], line["attempts"]) for line in forwarder.log("connection")} == {("closed", 1)}


def test_when_all_are_down_the_client_is_refused_at_once(lab, servers):
    refuse = fl.service(lab, "refuse", WEB, 9, health={"interval": 0.5, "timeout": 0.3})
    with fl.Forwarder(lab, fl.config(refuse)) as forwarder:
        fl.wait(lambda: set(states(forwarder)) == {"down"}, "all are down", forwarder.show)
        with pytest.raises(ConnectionResetError), fl.connect(lab, lab["a"].ipv4, WEB) as sock:
            sock.recv(1)
        (line,) = forwarder.connections(1)
        assert (line["ended"], line["attempts"]) == ("no backend is up", 0)
        assert forwarder.status()["services"][0]["refused_no_backend"] == 1


def test_the_checker_is_replaced_and_goes_on_where_it_was(lab, servers, forwarder):
    servers["b"].stop()
    fl.wait(lambda: backends(forwarder)["b"]["state"] == "down", "b is down", forwarder.show)
    (checker,) = forwarder.children("l4-checker")
    os.kill(checker, signal.SIGKILL)
    fl.wait(lambda: forwarder.children("l4-checker") not in ([], [checker]), "it is replaced", forwarder.show)
    assert backends(forwarder)["b"]["state"] == "down"
    servers["b"].start()
    fl.wait(lambda: set(states(forwarder)) == {"up"}, "b is up again", forwarder.show)
    assert forwarder.reload().returncode == 0
    assert set(states(forwarder)) == {"up"}, "what was known is known to the new generation"
