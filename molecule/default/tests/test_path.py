# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What backends log, what is on the wire, and that nothing works when a part of the path is missing."""

from __future__ import annotations

import re

import pytest

from tests.lab.traffic import capture, get, logged, neighbour_mac, retransmits
from tests.support.waiting import eventually

WEB, API, FAST = 80, 81, 83
BACKENDS = {WEB: ["b", "c", "d"], API: ["b", "c"], FAST: ["d"]}
FAMILIES = pytest.mark.parametrize("family", ["ipv4", "ipv6"])


@FAMILIES
@pytest.mark.parametrize("port", [WEB, API, FAST])
def test_each_backend_logs_the_client_and_never_the_proxy(lab, family, port):
    before = {name: logged(lab[name]) for name in BACKENDS[port]}
    answers = [get(lab["client"], lab["a"], family, port) for _request in range(3 * len(BACKENDS[port]))]
    assert set(answers) == set(BACKENDS[port])
    for name, lines in before.items():
        new = logged(lab[name])[len(lines) :]
        assert len(new) == answers.count(name)
        assert {line.split()[0] for line in new} == {getattr(lab["client"], family)}


def test_requests_are_distributed_by_weight(lab):
    answers = [get(lab["client"], lab["a"], "ipv4", API) for _request in range(12)]
    assert (answers.count("b"), answers.count("c")) == (8, 4)


@FAMILIES
def test_requests_and_replies_pass_through_the_proxy(lab, family):
    client, proxy, backend = lab["client"], lab["a"], lab["b"]
    source = getattr(client, family)
    with capture(backend, f"tcp port 8080 and host {source}") as packets:
        while get(client, proxy, family, WEB) != "b":
            pass
    requests = [packet for packet in packets if packet.startswith(f"{proxy.mac} > {backend.mac}")]
    replies = [packet for packet in packets if packet.startswith(f"{backend.mac} > ")]
    assert requests
    assert replies
    assert all(f" {source}." in packet for packet in requests)
    assert all(packet.startswith(f"{backend.mac} > {proxy.mac}") for packet in replies), replies


def test_the_proxy_answers_arp_only_for_its_own_address(lab):
    backend = lab["b"]
    router = backend.run(["arping", "-c", "3", "-w", "4", "-I", "eth0", "198.18.0.1"]).stdout
    assert set(re.findall(r"\[?((?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2})\]?", router)) == {lab["router"].on("inside").mac}
    unused = backend.run(["arping", "-c", "3", "-w", "4", "-I", "eth0", "198.18.0.200"], check=False)
    assert "Received 0 " in unused.stdout or "0 packets received" in unused.stdout, unused.stdout


def test_the_proxy_answers_neighbour_discovery_only_for_its_own_address(lab):
    backend = lab["b"]
    for address, expected in (("2001:db8::1", lab["router"].on("inside").mac), ("2001:db8::200", None)):
        backend.run(["ip", "-6", "neigh", "flush", "dev", "eth0"])
        backend.run(["ping", "-6", "-c", "1", "-W", "2", address], check=False)
        assert neighbour_mac(backend, address) == expected


def assert_broken(lab, play, step):
    """In both families, no request succeeds and the proxy retransmits its SYN; the playbook verify names ``step``."""
    for family in ("ipv4", "ipv6"):
        before = retransmits(lab["a"])
        assert get(lab["client"], lab["a"], family, WEB, check=False) is None
        assert retransmits(lab["a"]) > before
    failed = play("verify")
    assert failed.status != 0
    assert step in failed.output


def assert_working(lab):
    for family in ("ipv4", "ipv6"):
        eventually(lambda family=family: get(lab["client"], lab["a"], family, WEB, check=False))


def test_without_the_return_path_no_request_succeeds_until_site_runs(lab, play):
    for name in BACKENDS[WEB]:
        # A running keeper would restore the rules before the check.
        lab[name].run(["systemctl", "stop", "l4proxy-keeper"])
        for version in ("-4", "-6"):
            lab[name].run(["ip", version, "rule", "del", "pref", "1100"])
            lab[name].run(["ip", version, "rule", "del", "pref", "1101"])
    assert_broken(lab, play, "return path on the backend")
    assert set(play("site").changed) == set(BACKENDS[WEB])
    assert_working(lab)


def test_without_local_delivery_no_request_succeeds_until_site_runs(lab, play):
    lab["a"].run(["systemctl", "stop", "l4proxy-keeper"])
    for version in ("-4", "-6"):
        lab["a"].run(["ip", version, "route", "flush", "table", "20100"])
    assert_broken(lab, play, "local delivery on this host")
    assert play("site").changed == {"a": 2}
    assert_working(lab)


def test_the_keeper_restores_rules_and_routes(lab):
    for version in ("-4", "-6"):
        lab["a"].run(["ip", version, "route", "flush", "table", "20100"])
        lab["b"].run(["ip", version, "rule", "flush", "protocol", "202"])
    assert_working(lab)
    for name in ("a", "b"):
        eventually(lambda name=name: " repair" in lab[name].run(["systemctl", "status", "l4proxy-keeper"]).stdout)


def test_verify_reports_every_backend_of_every_service_in_both_families(play):
    run = play("verify")
    assert run.status == 0, run.output
    expected = [(f"web: {host}", 8080) for host in "bcd"] + [(f"api: {host}", 8081) for host in "bc"]
    for name, port in [*expected, ("fast: d", 8081)]:
        for address in (f"198.18.0.2{' bcd'.index(name[-1])}", f"[2001:db8::2{' bcd'.index(name[-1])}]"):
            assert f"{name}: established with {address}:{port}" in run.output
        for source in ("198.51.100.11", "2001:db8:ffff::11"):
            assert f"{name}: the backend saw {source}" in run.output


def test_verify_reports_source_nat_that_hides_the_clients(lab, play):
    """Handshakes succeed meanwhile. In check mode, nothing is sent."""
    masquerade = "table inet hide { chain c { type nat hook postrouting priority srcnat; oifname eth0 masquerade; }; }"
    lab["a"].run(["nft", masquerade])
    try:
        run, checked = play("verify"), play("verify", "--check")
    finally:
        lab["a"].run(["nft", "delete", "table", "inet", "hide"])
    assert checked.status == 0, checked.output
    assert run.status != 0
    for name in ("web: b", "web: c", "web: d", "api: b", "api: c"):
        for source, seen in (("198.51.100.11", "198.18.0.11"), ("2001:db8:ffff::11", "2001:db8::11")):
            assert f"{name}: the backend saw {seen} instead of {source}: source NAT on the way" in run.output
