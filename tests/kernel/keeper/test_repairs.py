# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The keeper restores removed objects within a second; without it they stay removed."""

from __future__ import annotations

import time

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper import monitor
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.marks import iptables_legacy

from tests.support.addresses import address_of
from tests.support.keeping import keeping, storm
from tests.support.marking import Variant, marked
from tests.support.routing import listing, return_path
from tests.support.waiting import PATIENCE, eventually

HOSTS = ["client", "router", "a", "a2", "b"]

SETTING = "net.ipv4.conf.eth0.accept_redirects"
# One second is promised; a machine that runs other tests may take longer.
WITHIN = 3.0
MOVED = "02:00:00:00:0a:0a"


@pytest.fixture
def keeper(lab, b, tmp_path):
    with keeping(lab, "b", tmp_path, return_path(lab["a"], sysctls=((SETTING, "0"),))) as running:
        eventually(lambda: "in place" in running.state["story"])
        yield running


def whole(b) -> list[str]:
    return sorted(line for line in listing(b) if " proto 202" in line or "0x" in line or "02:" in line)


def flap(lab, b) -> None:
    b.run(["ip", "link", "set", "eth0", "down"])
    b.run(["ip", "link", "set", "eth0", "up"])
    b.run(["ip", "-6", "addr", "replace", f"{b.ipv6}/64", "dev", "eth0", "nodad"])
    b.run(["ip", "route", "replace", "default", "via", "198.18.0.1"])
    b.run(["ip", "-6", "route", "replace", "default", "via", "2001:db8::1"])


def script(*commands: str):
    def harm(lab, b) -> None:
        for command in commands:
            b.run(command.split())

    return harm


HARM = {
    "rule": (script("ip rule del priority 1101", "ip -6 rule del priority 1100"), "rule"),
    "all rules": (script("ip rule flush protocol 202", "ip -6 rule flush protocol 202"), "rule"),
    "route": (script("ip route flush table 20111", "ip -6 route flush table 20111"), "route"),
    "ruleset": (script("nft flush ruleset"), "marks"),
    "a rule of the table": (script("nft flush chain inet l4proxy_return_path save_11"), "marks"),
    "link": (flap, "route"),
}


@pytest.mark.parametrize(("harm", "kind"), HARM.values(), ids=HARM)
def test_removed_objects_are_restored_and_counted(lab, b, keeper, harm, kind):
    before = whole(b)
    harm(lab, b)
    began = time.monotonic()
    eventually(lambda: whole(b) == before and keeper.repairs)
    assert time.monotonic() - began < WITHIN
    assert keeper.state["repairs"]["by_kind"][kind]
    assert keeper.state["last_repair"]["seconds"] < WITHIN


STORMS = {
    "rules": "ip rule flush protocol 202; ip -6 rule flush protocol 202",
    "routes": "ip route flush table 20111; ip -6 route flush table 20111",
    "everything": "ip rule flush protocol 202; ip -6 rule flush protocol 202; ip route flush table 20111; "
    "ip -6 route flush table 20111; nft flush ruleset",
}


@pytest.mark.parametrize("flush", STORMS.values(), ids=STORMS)
def test_after_a_storm_of_flushes_everything_is_restored_at_once(b, keeper, flush):
    """Objects that are flushed every 0.2 s cannot be kept, but must be restored quickly after the last flush."""
    before = whole(b)
    b.run(["sh", "-c", f"for i in $(seq 60); do {flush}; sleep 0.2; done"], timeout=120)
    ended, cpu = time.monotonic(), keeper.cpu()
    eventually(lambda: whole(b) == before)
    assert time.monotonic() - ended < WITHIN
    assert keeper.state["repairs"]["total"] > 5
    assert cpu < 6.0


@pytest.mark.parametrize("harm", [harm for harm, _kind in HARM.values()], ids=HARM)
def test_without_a_keeper_removed_objects_stay_removed(lab, b, keeper, harm):
    before = whole(b)
    assert keeper.stop() == 0
    assert whole(b) == before, "what is in place stays when the keeper ends"
    harm(lab, b)
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        assert whole(b) != before
        time.sleep(0.05)


@pytest.mark.parametrize("flavour", ["nft", "legacy"])
def test_removed_iptables_marks_are_restored(lab, tmp_path, flavour):
    """iptables-nft sends notifications; iptables-legacy is polled every second."""
    variant = Variant("iptables", f"iptables-{flavour}")
    data = {**return_path(lab["a"]), "mark_engine": "iptables"}
    with marked(lab, "b", variant) as b, keeping(lab, "b", tmp_path, data, iptables=flavour) as running:
        eventually(lambda: "in place" in running.state["story"])
        before = variant.save(b.host)
        assert before
        for number in (1, 2):
            b.run("iptables -t mangle -F")
            eventually(lambda number=number: running.repairs == number and variant.save(b.host) == before)
        assert running.state["repairs"]["by_kind"] == {"marks": 2}
        running.stop()
        b.run("iptables -t mangle -F")
        assert variant.save(b.host) != before


def test_the_fingerprint_sees_changes_in_iptables_legacy(lab):
    """It is empty without iptables-legacy, and reading it creates no table."""
    b = lab["client"]
    iptables = ["iptables-legacy", "-t", "mangle"]
    with b.inside():
        assert iptables_legacy.fingerprint() == iptables_legacy.fingerprint() == (b"", b"")
    b.run([*iptables, "-N", "OTHERS"])
    with b.inside():
        empty = iptables_legacy.fingerprint()
        assert empty == iptables_legacy.fingerprint()
        assert (bool(empty[0]), empty[1]) == (True, b"")
    b.run([*iptables, "-A", "OTHERS", "-j", "ACCEPT"])
    with b.inside():
        assert iptables_legacy.fingerprint() != empty


def test_a_changed_sysctl_is_restored_within_seconds(b, keeper):
    b.sysctl(SETTING, "1")
    eventually(lambda: b.run(["sysctl", "-n", SETTING]).stdout == "0\n")
    eventually(lambda: keeper.state["repairs"]["by_kind"] == {"sysctl": 1})


@pytest.fixture
def movable(lab):
    a = lab["a"]
    yield a
    a.run(["ip", "link", "set", "eth0", "address", a.mac])
    lab["b"].run(["ip", "neigh", "flush", "all"])


def test_the_marks_follow_a_changed_proxy_mac(lab, b, keeper, movable, family):
    """By packets in one family only: the neighbour entry of the other family keeps the old MAC."""
    for known in (movable.ipv4, movable.ipv6):
        b.run(["ping", "-c1", "-W10", known])
    eventually(lambda: movable.mac in "".join(whole(b)))
    movable.run(["ip", "link", "set", "eth0", "address", MOVED])
    # The kernel keeps an entry for a second (neigh/locktime), so a second packet may be needed.
    eventually(lambda: _spoken_to(movable, b, family) and MOVED in "".join(whole(b)))
    eventually(lambda: keeper.state["repairs"]["by_kind"].get("marks"))


def _spoken_to(a, b, family: str) -> bool:
    a.run(["ip", "neigh", "flush", "all"])
    return a.run(["ping", "-c1", "-W1", address_of(b, family)], check=False).returncode == 0


def test_the_keeper_waits_for_a_late_link_and_address(lab, b, tmp_path):
    b.run(["ip", "link", "set", "eth0", "down"])
    with keeping(lab, "b", tmp_path, return_path(lab["a"])) as running:
        eventually(lambda: "waiting for 198.18.0.11 to be on-link" in running.state["story"])
        flap(lab, b)
        eventually(lambda: running.state["documents"]["return_path"]["state"] == "in place")
        assert running.repairs == 0, "waiting is no repair"


def test_a_run_with_a_changed_document_is_not_undone(lab, b, keeper):
    """A run changes the kernel before it stores its document; the keeper must not restore the old state in between."""
    for hosts in ([lab["a"], lab["a2"]], [lab["a"]]) * 3:
        data = return_path(*hosts, sysctls=((SETTING, "0"),))
        lab.engine.apply(b, data, directory=str(keeper.documents))
        applied = listing(b)
        deadline = time.monotonic() + 0.4
        while time.monotonic() < deadline:
            assert listing(b) == applied
    assert keeper.repairs == 0, keeper.log


# --- notifications


def test_a_storm_of_foreign_routes_costs_almost_no_cpu(b, keeper):
    keeper.rest()
    before, began = keeper.cpu(), time.monotonic()
    for _time in range(5):
        storm(b, 2000)
    took = time.monotonic() - began
    used = keeper.cpu() - before
    assert used < 0.02 * took + 0.05, f"{used:.2f} s of CPU in {took:.1f} s"
    b.run(["ip", "rule", "del", "priority", "1101"])
    eventually(lambda: keeper.repairs)


INTEREST = monitor.Interest(
    frozenset({202}),
    frozenset({20111}),
    frozenset({"198.18.0.11", "2001:db8::11"}),
    frozenset({"eth0"}),
    frozenset({"l4proxy_return_path"}),
)


@pytest.fixture
def listening(b):
    with b.inside():
        made = monitor.Monitor()
        made.watch(INTEREST)
        yield made
    made.close()


def heard(listening) -> set[str]:
    """The kinds of all notifications so far."""
    kinds: set[str] = set()
    while news := listening.wait(0.3):
        kinds |= {item.kind for item in news}
    return kinds


NEWS = [
    ("rule add priority 1150 from 198.18.0.77 lookup 20111 protocol 202", "rule"),
    ("-6 rule add priority 1150 from 2001:db8::77 lookup 20111 protocol 202", "rule"),
    ("route add 198.19.0.0/16 via 198.18.0.1 table 20111", "route"),
    ("-6 route add 2001:db8:9::/48 via 2001:db8::1 table 20111", "route"),
    ("neigh replace 198.18.0.11 lladdr 02:00:00:00:0a:0a dev eth0", "neighbour"),
    ("neigh replace 2001:db8::11 lladdr 02:00:00:00:0a:0a dev eth0", "neighbour"),
    ("address add 198.18.0.88/32 dev eth0", "address"),
    ("-6 address add 2001:db8::88/128 dev eth0", "address"),
]
NO_NEWS = [
    "rule add priority 1150 from 198.18.0.77 lookup 20111 protocol 150",
    "-6 rule add priority 1150 from 2001:db8::77 lookup 20111 protocol 150",
    "route add 198.19.0.0/16 via 198.18.0.1 table 777",
    "-6 route add 2001:db8:9::/48 via 2001:db8::1 table 777",
    "route add 198.19.0.0/16 via 198.18.0.1",
    "neigh replace 198.18.0.12 lladdr 02:00:00:00:0a:0a dev eth0",
    "neigh replace 2001:db8::12 lladdr 02:00:00:00:0a:0a dev eth0",
    "address add 198.18.0.88/32 dev lo",
]


def undo(b, command: str) -> None:
    words = command.replace(" add ", " del ").replace(" replace ", " del ")
    b.run(["ip", *words.split()])


@pytest.mark.parametrize(("command", "kind"), NEWS)
def test_changes_of_our_objects_cause_notifications(b, listening, command, kind):
    heard(listening)
    b.run(["ip", *command.split()])
    assert kind in heard(listening)
    undo(b, command)


@pytest.mark.parametrize("command", NO_NEWS)
def test_foreign_changes_cause_no_notifications(b, listening, command):
    heard(listening)
    b.run(["ip", *command.split()])
    assert heard(listening) == set()
    undo(b, command)


def test_a_notification_of_marks_names_the_process(b, listening):
    b.run(["nft", "add table inet others; add chain inet others x; delete table inet others"])
    assert heard(listening) == set()
    b.run(["nft", "add table inet others; add table inet l4proxy_return_path; delete table inet others"])
    news = listening.wait(PATIENCE)
    assert [(item.kind, item.process) for item in news] == [("marks", "nft")]
    b.run(["nft", "delete table inet l4proxy_return_path"])


def test_while_something_is_missing_every_change_counts(b, listening):
    listening.watch(monitor.Interest(anything=True))
    heard(listening)
    b.run(["ip", "route", "add", "198.19.0.0/16", "via", "198.18.0.1"])
    assert heard(listening) == {"route"}
    b.run(["ip", "link", "add", "veth9", "type", "veth"])
    assert "link" in heard(listening)
    b.run(["ip", "link", "del", "veth9"])
    b.run(["ip", "route", "del", "198.19.0.0/16"])


def test_lost_notifications_cause_a_full_check(b, listening):
    rules = [f"rule {verb} priority 1150 from all lookup 777 protocol 202" for verb in ("add", "del")]
    b.run(["ip", "-batch", "-"], input="\n".join(rules * 6000) + "\n")
    assert "lost" in heard(listening)


def test_the_socket_filter_drops_foreign_notifications(b, listening):
    """The filter is in the kernel: foreign notifications are not queued, so none can be lost."""
    heard(listening)
    storm(b, 3000)
    assert listening.wait(0) == []
