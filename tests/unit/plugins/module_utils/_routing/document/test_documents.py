# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Validation of state documents: all errors are reported at once, each with its path."""

from __future__ import annotations

import copy

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents, formatting
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Mark, Route, Rule, Sysctl
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import DocumentError

from ..fakes import RETURN_PATH

GOOD = {
    **RETURN_PATH,
    "routes": [{**RETURN_PATH["routes"][0], "type": "unicast"}],
    "marks": [
        {"name": "a", "id": 11, "mask": 255, "mac": None, "via": ["198.18.0.11", "2001:db8::11"]},
        {"name": "a2", "id": 12, "mask": 255, "mac": "02:00:00:00:00:12", "via": ["198.18.0.12"], "retiring": True},
    ],
    "sysctls": [{"name": "net.ipv4.conf.all.accept_redirects", "value": 0}],
}


def changed(path: str, value: object) -> dict:
    """GOOD with one value replaced: ``rules.0.table``; ``...`` removes it; ``+`` appends to a list."""
    data = copy.deepcopy(GOOD)
    *way, last = path.split(".")
    target = data
    for step in way:
        target = target[int(step)] if step.isdigit() else target[step]
    if last == "+":
        target.append(value)
    elif value is ...:
        del target[last]
    else:
        target[int(last) if last.isdigit() else last] = value
    return data


def errors_of(data: object) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        documents.load(data)
    return caught.value.errors


def test_a_valid_document_is_loaded_as_objects():
    loaded = documents.load(GOOD)
    lookup = Rule("ipv4", 1100, table=20111, fwmark=11, fwmask=255)
    guard = Rule("ipv4", 1101, action="unreachable", fwmark=11, fwmask=255)
    new = Mark("a", 11, 255, (), ("198.18.0.11", "2001:db8::11"))
    old = Mark("a2", 12, 255, ("02:00:00:00:00:12",), ("198.18.0.12",))
    routes, sysctls = (Route("ipv4", 20111, via="198.18.0.11"),), (Sysctl("net.ipv4.conf.all.accept_redirects", "0"),)
    assert loaded == documents.Document("return_path", 202, (lookup, guard), routes, (new, old), sysctls)
    assert [mark.retiring for mark in loaded.marks] == [False, True]


def test_dump_is_the_inverse_of_load_and_keeps_every_selector_but_no_prefix_length_of_an_address():
    dumped = documents.dump(documents.load(GOOD))
    assert dumped["marks"] == GOOD["marks"]
    assert documents.dump(documents.load(dumped)) == dumped
    assert documents.load(dumped) == documents.load(GOOD)
    rule = {"family": "ipv6", "priority": 7, "action": "lookup", "table": 9, "src": "2001:db8::/64", "dst": "default"}
    rule |= {"iif": "lo", "oif": "eth0", "ip_proto": 17, "sport": "53-60", "dport": 99, "uid_range": "0-5"}
    rule |= {"suppress_prefixlength": 0, "retiring": True, "retire_at": 1732400000}
    data = changed("rules", [rule])
    dumped = documents.dump(documents.load(data))["rules"][0]
    del rule["dst"]
    assert dumped == {**rule, "ip_proto": "udp", "dport": "99"}
    dumped = documents.dump(documents.load(changed("addresses", [{**ADDRESS, "retiring": True, "retire_at": 5}])))
    assert dumped["addresses"] == [{**ADDRESS, "address": "198.18.0.121", "retiring": True, "retire_at": 5}]


ADDRESS = {"family": "ipv4", "address": "198.18.0.121/24", "dev": "eth0"}


def test_a_retiring_mark_may_share_its_proxy_with_a_new_id():
    loaded = documents.load(changed("marks.+", {**GOOD["marks"][1], "id": 13, "mac": None, "retiring": False}))
    assert [mark.id for mark in loaded.marks] == [11, 12, 13]


TEST_KEPT = [
    ("routes", {"family": "ipv4", "table": 9, "dst": "10.0.0.0/8", "type": "unicast", "via": "10.9.9.9", "dev": "eth0"}
     | {"scope": "link", "onlink": True, "mtu": 1400, "advmss": 1360, "metric": 5}),
    ("routes", {"family": "ipv4", "table": 9, "dst": "10.1.0.0/16", "type": "unicast", "dev": "eth0"}),
    ("routes", {"family": "ipv6", "table": 9, "dst": "default", "type": "unicast", "via": "2001:db8::11", "dev": None}
     | {"fallback": ["2001:db8::13", "2001:db8::12"]}),
    ("routes", {"family": "ipv6", "table": 9, "dst": "default", "type": "local", "dev": "lo"}),
    ("routes", {"family": "ipv6", "table": 8, "dst": "default", "type": "prohibit"}),
    ("marks", {"name": "up", "id": 13, "mask": 255, "iif": "eth0.100"}),
    ("marks", {"name": "up", "id": 13, "mask": 255, "iif": "eth1", "via": ["198.18.0.13"], "conntrack": False}),
    ("marks", {"name": "sockets", "id": 13, "mask": 255, "transparent": True}),
    ("marks", {"name": "a3", "id": 13, "mask": 255, "mac": "02:00:00:00:00:13"}),
    ("marks", {"name": "a3", "id": 13, "mask": 255, "mac": None, "via": ["198.18.0.13"], "conntrack": False}),
    ("marks", {"name": "a3", "id": 13, "mask": 255, "mac": None, "via": ["198.18.0.13"]}
     | {"last_sender": ["tcp/443", "tcp/8080", "udp/53"]}),
]  # fmt: skip


@pytest.mark.parametrize(("section", "value"), TEST_KEPT)
def test_dump_keeps_unusual_values_of_a_route_and_a_mark_of_each_kind(section, value):
    assert value in documents.dump(documents.load(changed(f"{section}.+", value)))[section]


@pytest.mark.parametrize("twice", [{"iif": "eth1"}, {"transparent": True}])
def test_two_marks_must_not_match_the_same_packets(twice):
    data = changed("marks", [{"name": f"m{one}", "id": one, "mask": 255, **twice} for one in (1, 2)])
    with pytest.raises(DocumentError, match=rf"marks\[1\].{next(iter(twice))}: .* is already used by marks\[0\]"):
        documents.load(data)


@pytest.mark.parametrize(("given", "dumped"), [("iptables", "iptables"), ("auto", None), (None, None)])
def test_dump_omits_the_default_engine_of_marks(given, dumped):
    assert documents.dump(documents.load(changed("mark_engine", given))).get("mark_engine") == dumped


def server(number: int, **more: object) -> dict:
    return {"name": f"b{number}", "address": f"198.18.0.{number}", "port": 8080, **more}


BYPASS = {"family": "ipv4", "priority": 1099, "fwmark": 255, "fwmask": 255, "action": "lookup", "table": 254}
WEB = {"name": "web", "family": "ipv4", "protocol": "tcp", "address": "198.18.0.100", "port": 80}
WEB["backends"] = [server(21), server(22)]
DNS = {**WEB, "name": "dns", "protocol": "udp", "port": 53, "backends": [server(21), server(23)]}
DATAPATH = {"schema": 1, "owner": "kernel_datapath", "protocol": 204, "rules": [BYPASS], "services": [WEB, DNS]}
DATAPATH["forwarding"] = ["ipv4"]
WEB6 = {**WEB, "family": "ipv6", "address": "2001:db8::100", "backends": [server(1, address="2001:db8::21")]}


def test_a_service_keeps_all_its_keys_and_a_document_without_services_has_the_keys_of_version_0_1_0():
    given = {
        **WEB, "balance": "source_hash", "backends": [server(21, weight=3, tier=256, enabled=False)],
        "on_all_down": "try_all", "on_down": "reset", "allow": ["10.0.0.0/8", "2001:db8::/32"], "deny": ["0.0.0.0/0"],
        "limits": {"connections": 5, "connections_per_client": 2, "rate_per_client": 0.5}, "log": "errors",
    }  # fmt: skip
    # What has left a service retires beside it, and the backend of a retiring service may have another.
    left = {**WEB, "retiring": True, "retire_at": 9}
    loaded = documents.load({**DATAPATH, "services": [given, left]})
    assert documents.dump(loaded)["services"][0] == given
    assert documents.load(documents.dump(loaded)) == loaded
    assert (loaded.bypass, loaded.forwarding) == (255, ("ipv4",))
    assert formatting.describe(loaded.services[1]) == "forward open connections of 198.18.0.100:80/tcp to b21, b22"
    keys = ["schema", "owner", "protocol", "rules", "routes", "marks", "sysctls", "addresses"]
    assert list(documents.dump(documents.load(GOOD))) == keys


REFUSED_SERVICES = [
    ({"services": [{**WEB, "address": "0.0.0.0"}]}, "services[0].address: 0.0.0.0 is every address of the host"),
    ({"services": [{**WEB, "address": "127.0.0.1"}]}, "services[0].address: the kernel cannot forward to or for 127"),
    ({"services": [{**WEB, "address": "2001:db8::1"}]}, "services[0].address: 2001:db8::1 is not ipv4"),
    ({"services": [{**WEB, "backends": []}]}, "services[0].backends: has no backend"),
    ({"services": [{**WEB, "backends": {}}]}, "services[0].backends: is a dict, expected a list"),
    ({"services": [{**WEB, "backends": [server(21), 7]}]}, "services[0].backends[1]: is a int, expected an object"),
    ({"services": [{**WEB, "backends": [server(21, port=0)]}]}, "services[0].backends[0].port: 0 is not a port"),
    ({"services": [{**WEB, "backends": [server(21, address="::1")]}]}, "services[0].backends[0].address: ::1 is not"),
    ({"services": [{**WEB, "backends": [server(21), server(21)]}]}, "services[0].backends[1]: has the name, or"),
    ({"services": [{**WEB, "allow": ["10.0.0.1/8"]}]}, "services[0].allow[0]: 10.0.0.1/8 has host bits set"),
    ({"services": [{**WEB, "limits": {"rate_per_client": -1}}]}, "services[0].limits.rate_per_client: -1 is not a"),
    ({"services": [{**WEB, "limits": {"rate": 1}}]}, "services[0].limits.rate: unknown key"),
    ({"services": [WEB, {**WEB, "name": "x"}]}, "services[1]: duplicates services[0] (forward 198.18.0.100:80/tcp to"),
    ({"services": [WEB, {**WEB, "port": 81, "backends": [server(22)]}]},
     "services[1].backends: b22 (198.18.0.22 tcp port 8080) is also a backend of services[0]; each address and port"),
    ({"services": [{**WEB, "backends": [server(100)]}]},
     "services[0].backends: b100 has the address 198.18.0.100, on which services[0] listens"),
    ({"forwarding": []}, "forwarding: has no ipv4, which a service needs"),
    ({"forwarding": ["ipv4", "ipv6"]}, "forwarding: ipv6 has no service; remove it, or this host would forward"),
    ({"forwarding": ["ipv5"]}, "forwarding[0]: 'ipv5' is not one of ipv4, ipv6"),
    ({"sysctls": [{"name": "net.ipv4.ip_forward", "value": "1"}]}, "sysctls[0]: net.ipv4.ip_forward is set by forward"),
    ({"rules": []}, "rules: ipv4 services need a rule that looks up table main (254) for packets with the mark of"),
    ({"rules": [{**BYPASS, "fwmask": 511}]}, "rules: ipv4 services need a rule that looks up table main (254)"),
    ({"services": [WEB, WEB6], "forwarding": ["ipv4", "ipv6"],
      "rules": [BYPASS, {**BYPASS, "family": "ipv6", "fwmark": 15, "fwmask": 15}]},
     "rules: the rules that look up table main (254) need the same mark in both families"),
]  # fmt: skip


@pytest.mark.parametrize(("part", "expected"), REFUSED_SERVICES)
def test_services_that_do_not_fit_together_are_refused(part, expected):
    found = errors_of({**DATAPATH, **part})
    assert found[0].startswith(expected), found


SOCKETS = {"name": "sockets", "id": 1, "mask": 255, "transparent": True}
A3 = {"name": "a3", "id": 13, "mask": 255, "via": ["198.18.0.13"]}
RULE6 = {"family": "ipv6", "priority": 9, "action": "lookup", "table": 9, "iif": "lo"}
ROUTE6 = {"family": "ipv6", "table": 9, "dst": "default", "dev": "lo"}
ONE_ERROR = [
    ("owner", "Return-Path", "owner: 'Return-Path' is not an owner"),
    ("owner", ..., "owner: required"),
    ("protocol", 2, "protocol: 2 is not a protocol number for an owner (193-255)"),
    ("protocol", 201, "protocol: 201 is not that of owner return_path, expected 202"),
    ("owner", "mine", "protocol: 202 belongs to owner return_path"),
    ("extra", 1, "extra: unknown key"),
    ("rules", {}, "rules: is a dict, expected a list"),
    ("rules.0", "x", "rules[0]: is a str, expected an object"),
    ("rules.0.tabel", 1, "rules[0].tabel: unknown key"),
    ("rules.0.table", ..., "rules[0].table: required with action lookup"),
    ("rules.0.table", 253, "rules[0].table: 253 is the reserved table default"),
    ("rules.+", {"family": "ipv4", "priority": 9, "action": "lookup", "table": 254, "iif": "eth0"},
     "rules[2].table: 254 is the reserved table main, which only a rule with fwmark may look up"),
    ("services", [WEB], "services: only a document of owner kernel_datapath has services"),
    ("forwarding", ["ipv4"], "forwarding: only a document of owner kernel_datapath has forwarding"),
    ("rules.0.table", True, "rules[0].table: True is not a routing table"),
    ("rules.0.priority", 32766, "rules[0].priority: 32766 is not a rule priority between local and main (1-32765)"),
    ("rules.0.priority", 0, "rules[0].priority: 0 is not a rule priority"),
    ("rules.0.priority", ..., "rules[0].priority: required"),
    ("rules.0.family", "inet", "rules[0].family: 'inet' is not one of ipv4, ipv6"),
    ("rules.0.family", [], "rules[0].family: [] is not one of ipv4, ipv6"),
    ("rules.0.action", "goto", "rules[0].action: 'goto' is not one of lookup"),
    ("rules.0.fwmark", 0x10B, "rules[0].fwmark: 0x10b has bits outside its mask 0xff"),
    ("rules.0", {**GOOD["rules"][0], "fwmark": None, "iif": "lo"}, "rules[0].fwmask: needs fwmark"),
    ("rules.0.src", "2001:db8::21", "rules[0].src: 2001:db8::21/128 is not ipv4"),
    ("rules.0.src", "198.18.0.21/24", "rules[0].src: 198.18.0.21/24 has host bits set"),
    ("rules.0.src", 7, "rules[0].src: 7 is not a string"),
    ("rules.0.ip_proto", "ipv6-icmp", "rules[0].ip_proto: ipv6-icmp never occurs in ipv4"),
    ("rules.0.ip_proto", "sctp!", "rules[0].ip_proto: 'sctp!' is not an IP protocol"),
    ("rules.0.sport", 53, "rules[0].ip_proto: sport and dport need tcp or udp"),
    ("rules.0.sport", "60-53", "rules[0].sport: '60-53' is an empty range of ports"),
    ("rules.0.dport", 70000, "rules[0].dport: 70000 is not a port (1-65535)"),
    ("rules.0.iif", "a/b", "rules[0].iif: 'a/b' is not the name of a network interface"),
    ("rules.0.retiring", "yes", "rules[0].retiring: 'yes' is not true or false"),
    ("rules.1.table", 20111, "rules[1].table: has no meaning with action unreachable"),
    ("rules.+", {"family": "ipv4", "priority": 9, "action": "lookup", "table": 9}, "rules[2]: has no selector"),
    ("rules.+", {**GOOD["rules"][0], "table": 9}, "rules[2]: duplicates rules[0]"),
    ("rules.0.fwmask", 0, "rules[0].fwmask: 0 is not a mask"),
    ("rules.0.fwmark", 0, "rules[0].fwmark: 0 is not a mark"),
    ("routes.0.via", "2001:db8::11", "routes[0].via: 2001:db8::11 is not ipv4"),
    ("routes.0.via", ..., "routes[0].via: a unicast route needs via or dev"),
    ("routes.0.via", "b", "routes[0].via: 'b' does not appear to be an IPv4 or IPv6 address"),
    ("routes.0.dst", ..., "routes[0].dst: required"),
    ("routes.0.type", "multicast", "routes[0].type: 'multicast' is not one of unicast"),
    ("routes.0.type", "local", "routes[0].via: has no meaning with type local"),
    ("routes.+", GOOD["routes"][0], "routes[1]: duplicates routes[0]"),
    ("routes.+", {"family": "ipv6", "table": 9, "dst": "default", "via": "fe80::1"}, "routes[1].dev: required with a"),
    ("routes.+", {"family": "ipv6", "table": 9, "dst": "default", "dev": "lo", "metric": 0},
     "routes[1].metric: the ke"),
    ("protocol", 203, "protocol: 203 is not that of owner return_path"),
    ("rules.0.uid_range", "9-5", "rules[0].uid_range: '9-5' is an empty range of users"),
    ("rules.0.uid_range", "root", "rules[0].uid_range: 'root' is not a user's number"),
    ("rules.0.oif", "a b", "rules[0].oif: 'a b' is not the name of a network interface"),
    ("rules.0.suppress_prefixlength", 33, "rules[0].suppress_prefixlength: 33 is longer than any ipv4 prefix"),
    ("rules.1.suppress_prefixlength", 0, "rules[1].suppress_prefixlength: has no meaning with action unreachable"),
    ("rules.+", {**RULE6, "suppress_prefixlength": 129}, "rules[2].suppress_prefixlength: 129 is not the length"),
    ("rules.0.retire_at", 5, "rules[0].retire_at: needs retiring"),
    ("routes.0.scope", "site", "routes[0].scope: 'site' is not one of global, link, host"),
    ("routes.+", {**ROUTE6, "scope": "link"}, "routes[1].scope: IPv6 routes have no scope link"),
    ("routes.+", {**ROUTE6, "mtu": 1279}, "routes[1].mtu: 1279 is below 1280"),
    ("routes.0.mtu", 67, "routes[0].mtu: 67 is not an MTU in bytes (68-65520)"),
    ("routes.0.advmss", 65500, "routes[0].advmss: 65500 is not a segment size in bytes"),
    ("routes.0.onlink", True, "routes[0].onlink: needs via and dev"),
    ("routes.+", {**ROUTE6, "type": "local", "mtu": 1400}, "routes[1].mtu: has no meaning with type local"),
    ("addresses", [{**ADDRESS, "address": "2001:db8::1"}], "addresses[0].address: 2001:db8::1 is not ipv4"),
    ("addresses", [{**ADDRESS, "address": "127.0.0.5"}], "addresses[0].address: 127.0.0.5 cannot be assigned"),
    ("addresses", [{**ADDRESS, "address": "b"}], "addresses[0].address: 'b' does not appear to be"),
    ("addresses", [{"family": "ipv4", "address": "198.18.0.121"}], "addresses[0].dev: required"),
    ("addresses", [ADDRESS, {**ADDRESS, "address": "198.18.0.121", "dev": "b"}],
     "addresses[1].address: 198.18.0.121 is already used by addresses[0]"),
    ("marks.0.id", 0x10B, "marks[0].id: 0x10b has bits outside its mask 0xff"),
    ("marks.0.id", 0, "marks[0].id: 0 is not a mark"),
    ("marks.0.id", 12, "marks[1]: duplicates marks[0]"),
    ("marks.1", {**A3, "mask": 0xFFF}, "marks[1].mask: 0xfff differs from 0xff; all marks share one mask"),
    ("marks.0.mac", "02:00:00:00:00", "marks[0].mac: '02:00:00:00:00' is not a MAC address"),
    ("marks.0.mac", "02:00:00:00:00:12", "marks[1].mac: 02:00:00:00:00:12 is already used by marks[0]"),
    ("marks.+", {**A3, "name": "a"}, "marks[2].name: a is already used by marks[0]"),
    ("marks.0.name", "a b", "marks[0].name: 'a b' is not a mark's name"),
    ("marks.+", {**A3, "via": ["198.18.0.11"]}, "marks[2].via: 198.18.0.11 is already used by marks[0]"),
    ("marks.0.via", [], "marks[0].via: [] is not a list of the proxy's addresses"),
    ("marks.0.via", ..., "marks[0].via: required"),
    ("marks.0.iif", "eth*", "marks[0].iif: 'eth*' is not the name of a network interface"),
    ("marks.1.iif", "eth0", "marks[1].iif: cannot be combined with mac"),
    ("marks.0.transparent", True, "marks[0].via: has no meaning with transparent"),
    ("marks.+", {**SOCKETS, "conntrack": True}, "marks[2].conntrack: has no meaning with transparent"),
    ("marks.0.conntrack", "no", "marks[0].conntrack: 'no' is not true or false"),
    ("marks.0.last_sender", ["tcp/65536"], "marks[0].last_sender: 'tcp/65536' is not a port with its protocol"),
    ("marks.0.last_sender", "tcp/80", "marks[0].last_sender: 'tcp/80' is not a list of ports such as tcp/8080"),
    ("marks.+", {"name": "up", "id": 13, "mask": 255, "iif": "eth1", "last_sender": ["udp/53"]},
     "marks[2].last_sender: needs via: the proxies through which replies may leave"),
    ("routes.0.fallback", ["2001:db8::12"], "routes[0].fallback: 2001:db8::12 is not ipv4"),
    ("routes.+", {"family": "ipv4", "table": 9, "dst": "default", "dev": "eth0", "fallback": ["198.18.0.12"]},
     "routes[1].fallback: needs via"),
    ("mark_engine", "ipset", "mark_engine: 'ipset' is not one of auto, nftables, iptables"),
    ("sysctls.0.name", "../x", "sysctls[0].name: '../x' is not the name of a sysctl"),
    ("sysctls.0.value", True, "sysctls[0].value: True is not a number or a string"),
    ("sysctls.+", {"name": "net/ipv4/conf/all/accept_redirects", "value": 1}, "sysctls[1]: duplicates sysctls[0]"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "expected"), ONE_ERROR)
def test_an_invalid_value_is_reported_with_its_path(path, value, expected):
    errors = errors_of(changed(path, value))
    assert len(errors) == 1, errors
    assert errors[0].startswith(expected)


@pytest.mark.parametrize(("schema", "expected"), [
    (2, "schema: 2 is not supported, it is from a newer l4proxy: update l4proxy on this host"),
    (0, "schema: 0 is not supported, expected 1"),
    (True, "schema: True is not supported, expected 1"),
    (None, "schema: None is not supported, expected 1"),
])  # fmt: skip
def test_another_schema_and_a_value_that_is_not_an_object_are_refused(schema, expected):
    # Nothing else is said: a newer schema may well know other keys.
    assert errors_of({**GOOD, "schema": schema, "unknown": 1}) == [expected]
    for data in (None, [], "x"):
        assert errors_of(data)[0].startswith("the document is a ")


def test_all_errors_are_reported_at_once():
    data = changed("rules.0.priority", 0)
    data["rules"][1]["table"] = 5
    data["routes"][0]["via"] = "::1"
    data["marks"][0]["mac"] = "x"
    data["sysctls"].append(7)
    data["more"] = 1
    paths = [error.split(":")[0] for error in errors_of(data)]
    assert paths == ["more", "rules[0].priority", "rules[1].table", "routes[0].via", "marks[0].mac", "sysctls[1]"]


def test_numbers_may_be_strings_because_templates_produce_them():
    data = changed("rules.0", {**GOOD["rules"][0], "priority": "1100", "fwmark": "0xb", "fwmask": "0xff"})
    assert documents.load(data) == documents.load(GOOD)


def test_the_protocol_of_single_objects_is_refused():
    data = {**GOOD, "owner": "mine", "protocol": 203}
    assert errors_of(data) == ["protocol: 203 belongs to the modules policy_rule and policy_route"]
