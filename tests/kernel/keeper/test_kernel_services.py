# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kernel services between the keeper's passes: states of backends, conntrack, counters, and lines about connections."""

from __future__ import annotations

import json
import os
import time

import pytest

from tests.kernel.forwarder.sessions import SERVERS, Refused, Session, each_once
from tests.support import udp
from tests.support.addresses import FAMILIES, address_of
from tests.support.keeping import keeping
from tests.support.routing import local_delivery
from tests.support.waiting import eventually

HOSTS = ["client", "router", "a", "b", "c"]
PORT, BACKEND = 7990, 9000
# One second is promised; a machine that runs other tests may take longer.
WITHIN = 3.0
TABLE = ["nft", "list", "table", "inet", "l4proxy_datapath"]


def document(lab, protocol: str, family: str, **options) -> dict:
    """``web`` on a's address, with the backends b and c."""
    backends = [{"name": name, "address": address_of(lab[name], family), "port": BACKEND} for name in ("b", "c")]
    place = {"family": family, "protocol": protocol, "address": address_of(lab["a"], family), "port": PORT}
    bypass = {"priority": 1099, "fwmark": 255, "fwmask": 255, "action": "lookup", "table": 254}
    names = ("tcp_loose", "acct", "timestamp")
    return {
        **{"schema": 1, "owner": "kernel_datapath", "protocol": 204, "forwarding": [family]},
        "rules": [{"family": family, **bypass}],
        "sysctls": [{"name": f"net.netfilter.nf_conntrack_{name}", "value": "1"} for name in names],
        "services": [{"name": "web", **place, "backends": backends, "log": "none", **options}],
    }


@pytest.fixture(scope="module", autouse=True)
def _paths(lab):
    """Replies of b and c leave through a, where a forwarder's replies would be delivered locally."""
    for name in ("b", "c"):
        for flag, family in zip(("-4", "-6"), FAMILIES):
            lab[name].run(["ip", flag, "route", "replace", "default", "via", address_of(lab["a"], family)])
    lab.engine.apply(lab["a"], local_delivery(lab["b"], lab["c"]))
    lab["a"].sysctl("net.ipv4.conf.all.src_valid_mark", "1")
    for dev in ("all", lab["a"].dev):  # it forwards out of the interface on which a packet came
        lab["a"].sysctl(f"net.ipv4.conf.{dev}.send_redirects", "0")


@pytest.fixture
def served(lab, protocol, family):
    servers = [SERVERS[protocol](lab, name, BACKEND) for name in ("b", "c")]
    yield
    for server in servers:
        server.stop()


@pytest.fixture
def keep(lab, protocol, family, served, tmp_path):
    """A function that starts a keeper for web with options; it ends with the test, and all of it is removed."""
    with keeping(lab, "a", tmp_path) as keeper:

        def start(**options):
            keeper.store(document(lab, protocol, family, **options))
            eventually(lambda: keeper.counters and keeper.host.run(TABLE, check=False).returncode == 0)
            return keeper

        yield start
    lab.engine.remove(lab["a"], "kernel_datapath")
    lab["a"].run(["conntrack", "-F"])


def session(lab, protocol, family) -> Session:
    return Session(lab, protocol, (address_of(lab["a"], family), PORT), patience=3 * udp.QUIET)


def session_with(lab, protocol, family, backend: str) -> Session:
    """A session that has this backend."""

    def found():
        one = session(lab, protocol, family)
        return one if one.name == backend else one.end()

    return eventually(found)


def backends(lab, protocol, family, count: int = 10) -> set[str]:
    found = [session(lab, protocol, family) for _number in range(count)]
    for one in found:
        one.end()
    return {one.name for one in found}


def moves(one: Session) -> bool:
    """Whether a client's next datagram reaches another backend, or its next packet is answered by a reset."""
    if one._udp:
        return udp.who(one._sock, one._to)[0] != one.name
    one._sock.send(b"!")
    time.sleep(0.05)
    return one.is_reset()


@each_once
def test_a_banned_client_is_refused_within_a_second_until_the_end_of_its_ban(lab, keep, protocol, family):
    """Backends stay as they are; a restart of the forwarder, which removes its files, lifts no ban."""
    keeper, client = keep(), address_of(lab["client"], family)

    def is_served() -> bool:
        try:
            session(lab, protocol, family).end()
        except (Refused, ConnectionRefusedError):
            return False
        return True

    keeper.publish({"web": {"b": "up", "c": "up"}})
    keeper.ban(family, [client, client, 0], service="mail")
    opened = session(lab, protocol, family)
    began = time.monotonic()
    end = int(time.time()) + 5
    keeper.ban(family, [client, client, end])
    eventually(lambda: not is_served())
    assert time.monotonic() - began < WITHIN + 3 * udp.QUIET
    if protocol == "tcp":
        opened.go_on()
        eventually(opened.is_reset)
    for file in list(keeper.states.parent.iterdir()):
        file.unlink()
    assert not is_served() or time.time() >= end
    time.sleep(max(0.0, end - time.time()) + 1)
    assert is_served()
    assert keeper.repairs == 0
    assert keeper.counters["services"]["web"]["refused"]["denied"] > 0
    for content in ("{", '{"lists": [{"source": "bans"}]}', '{"lists": 7}'):  # of a hostile publisher
        keeper.states.with_name("denied.json").write_text(content)
        eventually(lambda: "denied.json is ignored: it has no valid lists" in keeper.log)
        assert is_served()


@each_once
def test_clients_of_a_backend_that_is_down_go_on_with_another_at_once(lab, keep, protocol, family):
    keeper = keep(on_down="reset")
    with_b, with_c = (session_with(lab, protocol, family, name) for name in ("b", "c"))
    keeper.publish({"web": {"b": "up", "c": "up"}})
    time.sleep(0.2)
    assert not moves(with_b)
    began = time.monotonic()
    keeper.publish({"web": {"b": "down", "c": "up"}})
    eventually(lambda: moves(with_b))
    assert time.monotonic() - began < WITHIN
    assert backends(lab, protocol, family) == {"c"}
    assert not moves(with_c)
    assert keeper.repairs == 0
    # Its state holds although the forwarder stops, and the directory of the file goes with it.
    keeper.states.unlink()
    keeper.states.parent.rmdir()
    time.sleep(0.2)
    assert backends(lab, protocol, family) == {"c"}
    keeper.publish({"web": {"b": "up", "c": "up"}})
    eventually(lambda: backends(lab, protocol, family) == {"b", "c"})
    # Without a keeper nobody tells the kernel.
    keeper.process.kill()
    keeper.process.wait()
    with_c.go_on()
    keeper.publish({"web": {"b": "up", "c": "down"}})
    time.sleep(0.5)
    assert not moves(with_c)
    assert backends(lab, protocol, family) == {"b", "c"}


@each_once
def test_which_connections_a_backend_keeps(lab, keep, protocol, family):
    """A drained one keeps all, one that is down those over TCP, because the server may come back."""
    keeper = keep()
    one = session_with(lab, protocol, family, "b")
    keeper.publish({"web": {"b": "out"}})
    eventually(lambda: backends(lab, protocol, family) == {"c"})
    time.sleep(1.2)
    assert not moves(one)
    keeper.publish({"web": {"b": "down"}})
    time.sleep(0.5)
    assert moves(one) == (protocol == "udp")


def fifo(path):
    os.mkfifo(path)


def directory(path):
    path.mkdir()


def link(path):
    path.with_name("true").write_text('{"schema": 1, "services": {"web": {"b": "down", "c": "down"}}}')
    path.symlink_to(path.with_name("true"))


def content(text: str):
    return lambda path: path.write_text(text)


HOSTILE = {
    "fifo": fifo,
    "directory": directory,
    "link": link,
    "huge": content(" " * (2 << 20)),
    "deep": content("[" * 500_000),
    "truncated": content('{"schema": 1, "services": {"web": {"b": "down", "c": "do'),
    "names": content('{"schema": 1, "services": {"web": {"b; flush ruleset": "down", "router": "down"}, "x\\n": {}}}'),
    "values": content('{"schema": 1, "services": {"web": {"b": ["down"], "c": "drop; flush ruleset"}, "y": 1}}'),
}


@pytest.mark.parametrize(("protocol", "family"), [("tcp", "ipv4")])
def test_a_hostile_publisher_can_only_switch_declared_backends(lab, keep, protocol, family):
    keeper = keep()
    keeper.publish({})
    rules = rules_of(keeper)
    for name, make in HOSTILE.items():
        hostile = keeper.states.with_name("hostile")
        make(hostile)
        if hostile.is_dir():
            keeper.states.unlink()
        hostile.rename(keeper.states)
        time.sleep(0.1)
        assert rules_of(keeper) == rules, name
        if keeper.states.is_dir() and not keeper.states.is_symlink():
            keeper.states.rmdir()
    assert backends(lab, protocol, family) == {"b", "c"}
    for sentence in (
        "is not a regular file",
        "is longer than",
        "is not valid JSON",
        "no document has are ignored: web/b; flush ruleset",
    ):
        assert keeper.log.count(sentence) >= 1, keeper.log
    keeper.publish({"web": {"b": "down"}})
    eventually(lambda: backends(lab, protocol, family) == {"c"})
    assert keeper.repairs == 0


def rules_of(keeper) -> list[str]:
    """All but whether the forwarder has handed a service over, which its user decides."""
    listing = keeper.host.run([*TABLE[:1], "-s", *TABLE[1:]]).stdout
    return [line for line in listing.splitlines() if "socket wildcard 0 accept" not in line]


def totals(keeper) -> dict:
    return keeper.counters["services"]["web"]["backends"]


@each_once
def test_counters_and_connections_outlive_the_keeper_and_the_table(lab, keep, protocol, family):
    keeper = keep()
    sessions = [session(lab, protocol, family) for _number in range(6)]
    eventually(lambda: sum(one["open"] or 0 for one in totals(keeper).values()) == 6, explain=lambda: keeper.counters)
    before = totals(keeper)
    assert sum(one["connections"] for one in before.values()) == 6
    assert all(one["bytes_in"] and one["bytes_out"] for one in before.values() if one["connections"])
    keeper.process.kill()
    keeper.process.wait()
    for one in sessions:
        one.go_on()
    keeper.start()
    eventually(lambda: totals(keeper)[sessions[0].name]["packets_in"] > before[sessions[0].name]["packets_in"])
    # Somebody removes the table with its counters.
    keeper.host.run(["nft", "flush", "ruleset"])
    eventually(lambda: keeper.repairs == 1 and keeper.state["last_repair"]["seconds"] < WITHIN)
    session(lab, protocol, family).end()
    eventually(lambda: sum(one["connections"] for one in totals(keeper).values()) == 7)
    for name, one in totals(keeper).items():
        assert all(one[key] >= before[name][key] for key in one if key != "open")


@each_once
def test_a_line_is_logged_for_each_connection_that_has_ended(lab, keep, protocol, family):
    keeper = keep(log="all")
    one = session(lab, protocol, family)
    port = one._sock.getsockname()[1]
    one.end()
    keeper.host.run(["conntrack", "-D", "-f", family, "-p", protocol, "--orig-port-src", str(port)])
    lines = eventually(lambda: [line for line in keeper.log.splitlines() if line.startswith("{")])
    (line,) = map(json.loads, lines)
    expected = {
        **{"event": "connection" if protocol == "tcp" else "session", "level": "info", "service": "web"},
        **{"client": address_of(lab["client"], family), "source": address_of(lab["client"], family)},
        **{"client_port": port, "backend": one.name},
    }
    assert {key: line[key] for key in expected} == expected
    assert line["listener"].endswith(f":{PORT}")
    assert min(line["bytes_to_backend"], line["bytes_to_client"]) > 0
    assert 0 < line["duration"] < WITHIN
    # Another service's connections are not logged, nor are ours with log: none.
    keeper.store(document(lab, protocol, family))
    time.sleep(1.5)
    session(lab, protocol, family).end()
    keeper.host.run(["conntrack", "-F"])
    time.sleep(0.5)
    assert keeper.log.count('"service":"web"') == 1
