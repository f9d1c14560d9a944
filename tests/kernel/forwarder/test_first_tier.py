# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a proxy should get clients, as far as it takes a kernel to see it; the forwarder is unprivileged."""

from __future__ import annotations

import threading
import time

import pytest

from tests.kernel.forwarder.service_manager import alive, kill
from tests.support.forwarding import AS_DAEMON, LOCAL_TABLE, Forwarder, make_config, make_service
from tests.support.waiting import eventually

OPTIONS = {"ipv4": "-4", "ipv6": "-6"}
VIRTUAL = {"ipv4": "198.18.0.200", "ipv6": "2001:db8:1::200"}
METRICS = "127.0.0.1:9109"
HEALTHY = (True, "this proxy should get clients")


def document(lab, port=8000, metrics=METRICS):
    services = (make_service(lab, protocol, port, 9000, protocol=protocol) for protocol in ("tcp", "udp"))
    addresses = {"virtual_addresses": {"web": list(VIRTUAL.values())}}
    return make_config(*services, workers=2, metrics={"listen": metrics}, **addresses)


@pytest.fixture(scope="module")
def forwarder(lab):
    with Forwarder(lab, document(lab), wrapper=AS_DAEMON) as forwarder:
        yield forwarder


@pytest.fixture(scope="module", params=["rules", "socket_mark"])
def rules(lab, request):
    """The rules of a method of local delivery as arguments of ip(8), by family; they are set on a."""
    a, found = lab["a"], {}
    for family, option in OPTIONS.items():
        lines = [line for line in a.run(["ip", option, "rule"]).stdout.splitlines() if line.startswith("1100:")]
        found[family] = [[*line.split()[1:], "pref", "1100"] for line in lines]
    by_address = {family: list(each) for family, each in found.items()}
    marks = {family: [["fwmark", "0xb/0xff", "lookup", str(LOCAL_TABLE), "pref", "1100"]] for family in OPTIONS}
    if request.param == "rules":
        yield by_address
        return
    change(a, "add", marks)
    change(a, "del", by_address)
    yield marks
    change(a, "add", by_address)
    change(a, "del", marks)


def change(host, verb, rules):
    for family, each in rules.items():
        for rule in each:
            host.run(["ip", OPTIONS[family], "rule", verb, *rule])


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("part", ["a rule", "the route", "another rule"])
def test_broken_local_delivery_is_noticed_within_a_second_and_by_nothing_else(lab, forwarder, rules, family, part):
    a, option = lab["a"], OPTIONS[family]
    rule, route = rules[family][0], ["local", "default", "dev", "lo", "table", str(LOCAL_TABLE)]
    cut, mend = {
        "a rule": (["rule", "del", *rule], ["rule", "add", *rule]),
        "the route": (["route", "del", *route], ["route", "add", *route]),
        "another rule": (["rule", "add", "fwmark", "0x900/0xf00", "lookup", "77"], ["rule", "del", "lookup", "77"]),
    }[part]
    eventually(lambda: forwarder.healthy() == HEALTHY, "it is healthy")
    time.sleep(0.4)  # a look has seen the replies delivered
    a.run(["ip", option, *cut])
    broken = time.monotonic()
    while (answer := forwarder.healthy())[0] and time.monotonic() < broken + 1.5:
        time.sleep(0.02)
    took = time.monotonic() - broken
    a.run(["ip", option, *mend])
    if part == "another rule":
        assert answer == HEALTHY
        return
    assert took < 1.0
    spelled = {"ipv4": "IPv4", "ipv6": "IPv6"}[family]
    assert f"to {spelled} clients for its own: a rule or route of local delivery is missing" in answer[1]
    assert forwarder.status()["first_tier"]["reason"] == "local_delivery"
    eventually(lambda: forwarder.healthy() == HEALTHY, "it is healthy again")


@pytest.mark.ipv4_only
def test_it_stays_healthy_while_another_program_takes_over_and_not_when_it_crashes(lab):
    with Forwarder(lab, document(lab, 8100, "127.0.0.1:9110"), wrapper=AS_DAEMON) as forwarder:
        eventually(lambda: forwarder.healthy() == HEALTHY, "it is healthy")
        answers = []
        for _upgrade in range(2):
            forwarder.change_archive()
            asking = threading.Thread(target=lambda: answers.extend(forwarder.healthy() for _ask in range(40)))
            asking.start()
            assert forwarder.reload().returncode == 0
            asking.join()
        assert {healthy for healthy, _sentence in answers} == {True}, set(answers)
        assert forwarder.healthy() == HEALTHY
        workers = forwarder.workers()
        kill([forwarder.process.pid])
        assert not forwarder.healthy()[0]
        kill(alive(workers))


def healthz(lab):
    argv = ["curl", "-s", "-w", " %{http_code}", f"http://{METRICS}/healthz"]
    return lab["a"].run(argv).stdout


@pytest.mark.ipv4_only
def test_healthz_and_metrics_say_the_same(lab, forwarder):
    eventually(lambda: healthz(lab) == "this proxy should get clients\n 200", "it is healthy")
    forwarder.ask("withdraw", reason="new disk")
    sentence = "this proxy should not get clients: an operator has withdrawn it (new disk)"
    assert healthz(lab) == f"{sentence}\n 503"
    assert forwarder.status()["first_tier"]["sentence"] == sentence
    text = lab["a"].run(["curl", "-s", f"http://{METRICS}/metrics"]).stdout
    for line in (
        "healthy 0",
        "withdrawn 1",
        'unhealthy_reason{reason="withdrawn"} 1',
        'unhealthy_reason{reason="worker"} 0',
    ):
        assert f"\nl4proxy_{line}\n" in text
    forwarder.ask("rejoin")
    assert healthz(lab) == "this proxy should get clients\n 200"


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_virtual_addresses_that_come_and_go_are_shown_and_logged(lab, forwarder, family):
    address, length = VIRTUAL[family], "32" if family == "ipv4" else "128"

    def shown():
        return forwarder.status()["first_tier"]["addresses"]["web"][address]

    assert not shown()
    given = ["address", "add", f"{address}/{length}", "dev", lab["a"].dev, "nodad"]
    announced = ["route", "add", "local", address, "dev", "lo", "table", "main"]
    for add in (given, announced):
        for verb, here in (("add", True), ("del", False)):
            lab["a"].run(["ip", OPTIONS[family], *[verb if word == "add" else word for word in add]])
            eventually(lambda here=here: shown() is here, "it is shown")

    def logged():
        return [(line["event"], line["name"]) for line in forwarder.log() if line.get("address") == address]

    eventually(lambda: logged() == [("address arrived", "web"), ("address left", "web")] * 2, "it is logged")
