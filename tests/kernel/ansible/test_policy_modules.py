# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The modules policy_rule and policy_route. (test_examples.py runs their examples.)"""

from __future__ import annotations

import json

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.trueip.l4proxy.plugins.modules import policy_route, policy_rule

from tests.support.routing import listing

HOSTS = ["client", "router", "a", "b"]

MODULES = {"policy_rule": policy_rule, "policy_route": policy_route}


@pytest.fixture
def run(b, capsys):
    """Run a module's main() on the host; return its result. (A process for each would take half a second.)"""

    def call(name: str, check: bool = False, **options) -> dict:
        arguments = {**options, "_ansible_check_mode": check, "_ansible_diff": True}
        with b.inside(), patch_module_args(arguments), pytest.raises(SystemExit):
            MODULES[name].main()
        return json.loads(capsys.readouterr().out)

    return call


RULE = {"priority": 1000, "from": "198.18.0.121", "table": "100"}
ROUTE = {"table": "100", "dst": "default", "via": "198.18.0.1"}
OBJECTS = [
    ("policy_rule", RULE, {"table": "101"}, "ip rule 1000: from 198.18.0.121 lookup 100"),
    ("policy_rule", {**RULE, "from": "2001:db8::121"}, {"action": "prohibit", "table": None},
     "ip -6 rule 1000: from 2001:db8::121 lookup 100"),
    ("policy_route", ROUTE, {"via": "198.18.0.11"}, "ip route default via 198.18.0.1 dev eth0 table 100"),
    ("policy_route", {**ROUTE, "via": "2001:db8::1"}, {"mtu": 1400},
     "ip -6 route default via 2001:db8::1 dev eth0 table 100"),
    ("policy_route", {**ROUTE, "table": "main", "dst": "10.30.0.0/16"}, {"type": "prohibit", "via": None},
     "ip route 10.30.0.0/16 via 198.18.0.1 dev eth0 table 254"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "other", "text"), OBJECTS)
def test_a_rule_or_route_is_added_changed_and_removed(b, run, name, options, other, text):
    other = {key: value for key, value in {**options, **other}.items() if value is not None}
    before = listing(b)
    foretold = run(name, check=True, **options)
    assert listing(b) == before
    done = run(name, **options)
    assert foretold == done
    assert (done["changes"], done["diff"][0]["after"]) == ([f"add {text}"], f"{text}\n")
    whole = listing(b)
    assert not run(name, **options)["changed"]
    changed = run(name, **other)
    assert (changed["changed"], changed["diff"][0]["before"]) == (True, f"{text}\n")
    assert run(name, check=True, **options)["changed"]
    run(name, **options)
    assert listing(b) == whole
    assert run(name, check=True, state="absent", **other)["changed"]
    assert listing(b) == whole
    assert run(name, state="absent", **other)["diff"][0]["after"] == ""
    assert listing(b) == before
    assert not run(name, state="absent", **other)["changed"]


REFUSALS = [
    ("policy_rule", {"priority": 32766}, "priority: 32766 is not a rule priority between local and main (1-32765)"),
    ("policy_rule", {"to": "2001:db8::1"}, "to: 2001:db8::1/128 is not ipv4"),
    ("policy_rule", {"iif": "nope0"}, "waiting for link nope0 to exist"),
    ("policy_rule", {"oif": "a/b"}, "oif: 'a/b' is not the name of a network interface"),
    ("policy_rule", {"table": "0"}, "table: 0 is not a routing table (main, default, local, or a number)"),
    ("policy_rule", {"table": None}, "table: required with action lookup"),
    ("policy_rule", {"from": None}, "family: required, because no option contains an address"),
    ("policy_rule", {"from": None, "table": None, "family": "ipv4", "action": "prohibit"}, "has no selector"),
    ("policy_rule", {"fwmark": "0x1ff/0xff"}, "fwmark: 0x1ff has bits outside its mask 0xff"),
    ("policy_rule", {"fwmark": "1/0xff", "fwmask": "0xff"}, "fwmask: given twice"),
    ("policy_rule", {"dport": "53"}, "ipproto: sport and dport need tcp or udp"),
    ("policy_rule", {"uidrange": "9-5"}, "uidrange: '9-5' is an empty range of users"),
    ("policy_rule", {"protocol": 202}, "protocol: 202 is reserved for owner return_path"),
    ("policy_rule", {"protocol": 2}, "protocol: 2 is reserved for the kernel"),
    ("policy_rule", {"protocol": 300}, "protocol: 300 is not a protocol number (1-255)"),
    ("policy_route", {"table": "local"}, "table: the table local belongs to the kernel"),
    ("policy_route", {"via": "198.51.100.1"}, "waiting for 198.51.100.1 to be on-link"),
    ("policy_route", {"via": "198.18.0.21"}, "is an address of this host itself and cannot be its next hop"),
    ("policy_route", {"via": "2001:db8::1", "src": "198.18.0.21"}, "src: 198.18.0.21 is not ipv6"),
    ("policy_route", {"dev": "nope0"}, "waiting for link nope0 to be up"),
    ("policy_route", {"src": "198.18.0.99"}, "waiting for address 198.18.0.99 to be on this host"),
    ("policy_route", {"dst": "10.0.0.1/8"}, "dst: 10.0.0.1/8 has host bits set"),
    ("policy_route", {"type": "blackhole"}, "via: has no meaning with type blackhole"),
    ("policy_route", {"mtu": 10}, "mtu: 10 is not an MTU in bytes (68-65520)"),
]


@pytest.mark.parametrize(("name", "options", "sentence"), REFUSALS)
def test_invalid_objects_are_refused_before_any_change(b, run, name, options, sentence):
    usual = RULE if name == "policy_rule" else ROUTE
    given = {key: value for key, value in {**usual, **options}.items() if value is not None}
    before = listing(b)
    for check in (True, False):
        result = run(name, check=check, **given)
        assert result.get("failed"), result
        assert sentence in result["msg"]
    assert listing(b) == before


FOREIGN = [
    ("policy_rule", RULE,
     ["rule", "add", "priority", "1000", "from", "198.18.0.121", "lookup", "9", "protocol", "3"], True),
    ("policy_route", ROUTE, ["route", "add", "table", "100", "default", "via", "198.18.0.11"], True),
    ("policy_route", {**ROUTE, "dst": "10.0.0.0/8"},
     ["route", "add", "table", "100", "default", "via", "198.18.0.11"], False),
    ("policy_route", {**ROUTE, "table": "main", "dst": "10.0.0.0/8"},
     ["route", "add", "10.0.0.0/8", "via", "198.18.0.11"], True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "command", "same"), FOREIGN)
def test_objects_of_another_owner_need_its_name(b, run, name, options, command, same):
    b.run(["ip", *command])
    before = listing(b)
    result = run(name, **options)
    assert result["failed"]
    assert "proto boot" in result["msg"]
    assert "set protocol: 3" in result["msg"]
    assert run(name, state="absent", **options).get("failed", False) == same
    assert listing(b) == before
    assert run(name, protocol=3, **options)["changed"]
    assert run(name, protocol=3, state="absent", **options)["changed"]
    if not same:
        b.run(["ip", "route", "flush", "table", "100"])


def test_a_similar_rule_stays(b, run):
    """A rule with the same priority but other, or more, selectors is another rule."""
    run("policy_rule", **RULE)
    narrow = {**RULE, "ipproto": "tcp"}
    run("policy_rule", **narrow)
    assert run("policy_rule", state="absent", **RULE)["changed"]
    assert not run("policy_rule", **narrow)["changed"]
    assert run("policy_rule", state="absent", **narrow)["changed"]
