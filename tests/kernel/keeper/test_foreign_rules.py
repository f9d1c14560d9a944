# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Foreign rules added after a deployment: without a priority, the kernel puts them before ours."""

from __future__ import annotations

import json
import re
import time

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor import registry

from tests.support.addresses import FAMILIES, address_of
from tests.support.doctor import doctor_facts
from tests.support.keeping import keeping
from tests.support.routing import PORT, handshake, local_delivery, make_whole, return_path
from tests.support.waiting import eventually

HOSTS = ["client", "router", "a", "b"]

CLIENTS = {"ipv4": "198.18.1.10", "ipv6": "2001:db8:1::10"}
OPTION = {"ipv4": "-4", "ipv6": "-6"}
# What wg-quick(8) does for AllowedIPs = 0.0.0.0/0, ::/0.
UP = ["not fwmark 51820 table 51820", "table main suppress_prefixlength 0"]


@pytest.fixture(scope="module")
def lab(lab):
    lab.nginx("b", ports=[PORT])
    make_whole(lab)
    return lab


@pytest.fixture(params=["a", "b"])
def host(lab, request):
    """Each end in turn, with an intact path, and a tunnel with a default route in its table."""
    made = lab[request.param]
    make_whole(lab)
    made.run(["ip", "link", "add", "wg0", "type", "veth", "peer", "name", "wg0p"])
    for name in ("wg0", "wg0p"):
        made.run(["ip", "link", "set", name, "up"])
    for option in OPTION.values():
        made.run(["ip", option, "route", "add", "default", "dev", "wg0", "table", "51820"])
    yield made
    made.run(["ip", "link", "del", "wg0"])
    for family in FAMILIES:
        down(made, family)
    make_whole(lab)
    assert numbers(made, "ipv4") == numbers(made, "ipv6") == ([1100] if made.name == "a" else [1100, 1101])


def data(lab, host) -> dict:
    return local_delivery(lab["b"]) if host.name == "a" else return_path(lab["a"])


def up(host, family: str, *rules: str) -> None:
    for rule in rules or UP:
        host.run(["ip", OPTION[family], "rule", "add", *rule.split()])


def down(host, family: str) -> None:
    """Remove foreign rules."""
    for line in host.run(["ip", OPTION[family], "rule", "show"]).stdout.splitlines():
        number, rest = line.split(":", 1)
        if not re.search("proto 20[12]|lookup (local|default)|from all lookup main$", f"{rest.strip()}"):
            host.run(["ip", OPTION[family], "rule", "del", "priority", number])


def numbers(host, family: str) -> list[int]:
    """The priorities of our rules."""
    lines = host.run(["ip", "-details", OPTION[family], "rule", "show"]).stdout.splitlines()
    return sorted({int(line.split(":")[0]) for line in lines if re.search("proto 20[12]", line)})


def outcome(lab, family: str) -> str:
    return handshake(lab["a"], CLIENTS[family], address_of(lab["b"], family))


def complaints(lab, host, directory, wanted: dict | None = None) -> list:
    facts = doctor_facts(host, lab.engine, directory, wanted, CLIENTS)
    # These documents have no sysctls.
    found = registry.examine(facts, ["send_redirects", "accept_redirects"])
    return [finding for finding in found if finding.status in ("fail", "warn")]


def test_without_a_keeper_foreign_rules_take_our_packets_and_the_doctor_reports_them(lab, host, family, tmp_path):
    wanted = data(lab, host)
    (tmp_path / f"{wanted['owner']}.json").write_text(json.dumps(wanted))
    assert complaints(lab, host, tmp_path) == []
    up(host, family)
    assert outcome(lab, family) != "established"
    found = complaints(lab, host, tmp_path)
    ip = "ip" if family == "ipv4" else "ip -6"
    name = f"{ip} rule 1099: not from all fwmark 0xca6c lookup 51820"
    assert [(finding.id, finding.subject, finding.status) for finding in found[:1]] == [("rule_before", name, "fail")]
    assert "`l4proxy keep --once`" in found[0].fix
    early = complaints(lab, host, tmp_path, wanted)
    assert [(finding.id, finding.subject, finding.status) for finding in early] == [("rule_before", name, "warn")]
    # The suggested fix, `keep --once`, does this.
    foretold = lab.engine.apply(host, wanted, check=True)
    assert lab.engine.apply(host, wanted) == foretold
    assert outcome(lab, family) == "established"
    assert lab.engine.apply(host, wanted).changes == ()
    assert complaints(lab, host, tmp_path) == complaints(lab, host, tmp_path, wanted) == []


def test_the_keeper_moves_our_rules_before_foreign_rules_and_back(lab, host, family, tmp_path):
    home = numbers(host, family)
    with keeping(lab, host.name, tmp_path, data(lab, host)) as running:
        eventually(lambda: "in place" in running.state["story"])
        for _again in range(2):
            up(host, family)
            began = time.monotonic()
            eventually(lambda: max(numbers(host, family)) < 1098)
            assert time.monotonic() - began < 3.0
            assert outcome(lab, family) == "established"
            down(host, family)
            eventually(lambda: numbers(host, family) == home)
            assert outcome(lab, family) == "established"
        assert "which would take their packets" in running.log


# Rules of VPNs, netplan and others, with and without a priority. On-link traffic is not affected.
NEAR = {"ipv4": "to 198.18.0.0/24 table main", "ipv6": "to 2001:db8::/64 table main"}
OTHERS = [
    ["table 51820"],
    ["to 198.18.1.0/24 table 51820", "to 2001:db8:1::/64 table 51820"],
    ["table 51820 priority 7"],
    ["fwmark 0/0x10000 table 51820"],
    ["goto 32766"],
]


@pytest.mark.parametrize("rules", OTHERS, ids=lambda rules: rules[0])
def test_the_keeper_outranks_every_kind_of_foreign_rule(lab, host, family, rules, tmp_path):
    mine = [rule for rule in rules if "/" not in rule or (":" in rule) == (family == "ipv6") or "fwmark" in rule]
    with keeping(lab, host.name, tmp_path, data(lab, host)) as running:
        eventually(lambda: "in place" in running.state["story"])
        up(host, family, *mine, NEAR[family] + " priority 6" * ("priority 7" in mine[0]))
        eventually(lambda: max(numbers(host, family)) < 1100 and outcome(lab, family) == "established")


def test_foreign_rules_that_drop_packets_stay_first(lab, host, family, tmp_path):
    """Such a rule is intended, for example to ban a client. The doctor reports it."""
    wanted = data(lab, host)
    home = numbers(host, family)
    with keeping(lab, host.name, tmp_path, wanted) as running:
        eventually(lambda: "in place" in running.state["story"])
        up(host, family, f"to {CLIENTS[family]} blackhole")
        (found,) = (finding for finding in complaints(lab, host, running.documents) if finding.id == "rule_before")
        assert found.status == "fail"
        assert f"rule 1099: from all to {CLIENTS[family]} blackhole" in found.subject
        assert "with a fixed priority above" in found.fix
        assert numbers(host, family) == home
        assert outcome(lab, family) != "established"


def test_foreign_rules_added_repeatedly_are_outranked(lab, host, family, tmp_path):
    """Each new rule comes before ours; the keeper moves ours, with bounded CPU."""
    with keeping(lab, host.name, tmp_path, data(lab, host)) as running:
        eventually(lambda: "in place" in running.state["story"])
        before = running.cpu()
        for _time in range(20):
            up(host, family)
            time.sleep(0.1)
        assert running.cpu() - before < 2.5
        eventually(lambda: outcome(lab, family) == "established")
        assert running.process.poll() is None


def test_without_a_free_priority_the_foreign_rule_is_reported(lab, host, family, tmp_path):
    wanted = data(lab, host)
    (tmp_path / f"{wanted['owner']}.json").write_text(json.dumps(wanted))
    up(host, family, "not fwmark 51820 table 51820 priority 1", NEAR[family])
    done = lab.engine.apply(host, wanted)
    assert done.changes == ()
    assert "no priority is free in front of it" in done.warnings[0]
    assert outcome(lab, family) != "established"
    for found in (complaints(lab, host, tmp_path)[0], complaints(lab, host, tmp_path, wanted)[0]):
        assert (found.id, found.status) == ("rule_before", "fail")
        assert found.subject.endswith("rule 1: not from all fwmark 0xca6c lookup 51820")
        assert "rule del priority 1`, and add that rule again with a fixed priority above" in found.fix
    # The suggested fix works.
    host.run(["ip", OPTION[family], "rule", "del", "priority", "1"])
    up(host, family, "not fwmark 51820 table 51820 priority 1200")
    assert outcome(lab, family) == "established"


def test_a_low_priority_from_the_start_does_not_protect(lab, family):
    """Even before a rule with priority 1, the kernel adds rules without a priority at 0."""
    client = lab["client"]
    client.run(["ip", OPTION[family], "rule", "add", "priority", "1", "fwmark", "11/255", "table", "20111"])
    for rule in UP:
        client.run(["ip", OPTION[family], "rule", "add", *rule.split()])
    lines = client.run(["ip", OPTION[family], "rule", "show"]).stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["0", "0", "0", "1"]
    for number in ("0", "0", "1"):
        client.run(
            ["ip", OPTION[family], "rule", "del", "priority", number, *(["table", "51820"] if number == "0" else [])],
            check=False,
        )
