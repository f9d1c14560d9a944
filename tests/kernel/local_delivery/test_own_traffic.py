# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules that would catch the host's own traffic are refused, removed by the keeper, and reported by the doctor."""

from __future__ import annotations

import copy
import json

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing import errors
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor import registry
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents, options
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import single_object

from tests.support.addresses import BITS, address_of
from tests.support.doctor import doctor_facts
from tests.support.keeping import keeping
from tests.support.routing import PORT, PROTOCOLS, handshake, left_as_found, listing, local_delivery
from tests.support.waiting import eventually

HOSTS = ["client", "router", "a", "b"]

TABLE = "20100"


@pytest.fixture(scope="module")
def lab(lab):
    lab.nginx("a", ports=[22])
    lab.nginx("b", ports=[PORT])
    return lab


@pytest.fixture
def a(lab):
    host = lab["a"]
    before = sorted(listing(host))
    yield host
    for option in ("-4", "-6"):
        while host.run(["ip", option, "rule", "del", "priority", "900"], check=False).returncode == 0:
            pass
        for words in ("rule flush protocol 201", "route flush table 20100"):
            host.run(["ip", option, *words.split()], check=False)
    for table in ("777", "888"):
        host.run(["ip", "route", "flush", "table", table], check=False)
    lab.engine.remove(host, "local_delivery")
    assert sorted(listing(host)) == before


def reached(lab, family: str) -> str:
    """The outcome of a client's connection to a service on a."""
    client, a = lab["client"], lab["a"]
    return handshake(client, address_of(client, family), address_of(a, family), 22)


def ip(family: str, *words: str) -> list[str]:
    return ["ip", "-4" if family == "ipv4" else "-6", *words]


def rules_from(a, family: str, source: str) -> list[str]:
    lines = a.run(ip(family, "rule", "show")).stdout.splitlines()
    return [line for line in lines if f"from {source} " in line]


def deployed_before(a, family: str) -> None:
    """What version 0.1.0 applied for a backend that is the proxy itself."""
    a.run(ip(family, "route", "add", "local", "default", "dev", "lo", "table", TABLE, "proto", "201"))
    for protocol in PROTOCOLS[family]:
        words = f"rule add priority 1100 from {address_of(a, family)} ipproto {protocol} table {TABLE} protocol 201"
        a.run(ip(family, *words.split()))


def complaints(lab, a, directory, wanted: dict | None = None) -> list[tuple[str, str]]:
    """(id, subject) of each failed check on a."""
    facts = doctor_facts(a, lab.engine, directory, wanted)
    return [(finding.id, finding.subject) for finding in registry.examine(facts) if finding.status == "fail"]


def test_a_rule_from_an_own_address_cuts_the_host_off_from_itself(lab, a, family, tmp_path):
    """The control of the tests below. The doctor reports the rule, and the keeper removes it."""
    (tmp_path / "local_delivery.json").write_text(json.dumps(local_delivery(lab["b"], a)))
    assert reached(lab, family) == "established"
    deployed_before(a, family)
    own = address_of(a, family)
    assert reached(lab, family) == "silent"
    assert ("own_traffic", own) in complaints(lab, a, tmp_path)
    with keeping(lab, "a", tmp_path, local_delivery(lab["b"], a)) as running:
        eventually(lambda: reached(lab, family) == "established")
        assert rules_from(a, family, own) == []
        assert rules_from(a, family, address_of(lab["b"], family)), "the rest of the document is in place"
        eventually(lambda: f"{own} is an address of this host itself" in running.state["story"])


@pytest.mark.parametrize("bound", [{}, {"iif": "lo"}, {"iif": "eth0"}, {"dport": 8080, "ip_proto": "tcp"}], ids=str)
def test_a_document_with_a_rule_from_an_own_address_is_refused(lab, a, family, bound, tmp_path):
    data = local_delivery(lab["b"])
    mine = {**local_delivery(a)["rules"][0 if family == "ipv4" else 3], **bound}
    data["rules"].append(mine)
    before = listing(a)
    with pytest.raises(errors.Refused, match=rf"{address_of(a, family)} is an address of this host itself, so `ip"):
        lab.engine.apply(a, data, directory=str(tmp_path))
    assert (listing(a), list(tmp_path.iterdir())) == (before, [])
    assert ("own_traffic", address_of(a, family)) in complaints(lab, a, tmp_path, data)


def test_a_rule_by_socket_mark_from_an_own_address_is_accepted(lab, a, family):
    """A rule with protocol, port and mark catches no other packets of the host."""
    data = local_delivery(lab["b"])
    mine = local_delivery(a)["rules"][0 if family == "ipv4" else 3]
    data["rules"].append({**mine, "iif": "lo", "ip_proto": "tcp", "sport": PORT, "fwmark": 11, "fwmask": 255})
    lab.engine.apply(a, data)
    assert reached(lab, family) == "established"


def test_a_prefix_that_contains_an_own_address_is_refused_without_an_interface(lab, a):
    prefix = {"src": "198.18.0.0/24"}
    data = {**local_delivery(lab["b"])}
    data["rules"] = [{**data["rules"][0], **prefix}]
    with pytest.raises(errors.Refused, match=r"198.18.0.11 is an address of this host itself"):
        lab.engine.apply(a, data)
    data["rules"] = [{**data["rules"][0], "iif": "eth0"}]
    lab.engine.apply(a, data)
    assert reached(lab, "ipv4") == "established"


# Each of them catches the host's own packets, whatever its addresses are.
UNBOUNDED = [
    {"ip_proto": "tcp"},
    {"ip_proto": "tcp", "sport": "1-65535"},
    {"iif": "lo"},
    {"oif": "eth0"},
    {"uid_range": "0-4294967294"},
    {"src": "0.0.0.0/1", "ip_proto": "tcp"},
    {"dst": "128.0.0.0/1"},
]


@pytest.mark.parametrize("selectors", UNBOUNDED, ids=str)
def test_a_rule_without_selectors_is_refused(lab, a, selectors):
    rule = {"family": "ipv4", "priority": 1100, "action": "lookup", "table": 20100, **selectors}
    data = local_delivery(lab["b"])
    data["rules"] = [rule]
    with pytest.raises(errors.DocumentError, match=r"rules\[0\]: would deliver all packets that this host sends"):
        documents.load(data)


ALL = {"priority": 900, "family": "ipv4", "action": "lookup", "table": "777"}
LOCAL = {"dst": "default", "family": "ipv4", "table": "777", "type": "local"}
MAIN = {"dst": "default", "family": "ipv4", "table": "main", "type": "local", "metric": 900}


def ensure(lab, a, value):
    with a.inside():
        return single_object.ensure(value, lab.engine.host(a), protocol=203)


@pytest.mark.parametrize(
    ("first", "second"),
    [(options.route(LOCAL), options.rule(ALL)), (options.rule(ALL), options.route(LOCAL)), (None, options.route(MAIN))],
    ids=["route then rule", "rule then route", "table main"],
)
def test_the_modules_for_single_objects_refuse_such_a_rule_and_route(lab, a, first, second):
    if first:
        ensure(lab, a, first)
    before = listing(a)
    with pytest.raises(errors.Refused, match=r"would deliver all packets that this host sends to the host itself"):
        ensure(lab, a, second)
    assert listing(a) == before
    if first:
        # The control: the effect that was prevented.
        a.run(["ip", "route", "replace", "local", "default", "dev", "lo", "table", "777"])
        a.run(["ip", "rule", "add", "priority", "900", "lookup", "777"])
        assert reached(lab, "ipv4") == "silent"


def test_rules_and_routes_of_others_count_as_well(lab, a):
    """A document's rule for a foreign table, and a foreign rule for the document's table."""
    data = local_delivery(lab["b"])
    a.run(["ip", "rule", "add", "priority", "32000", "ipproto", "tcp", "lookup", TABLE])
    with pytest.raises(errors.Refused, match=r"`ip rule 32000: from all ipproto tcp lookup 20100` .* already there"):
        lab.engine.apply(a, data)
    a.run(["ip", "rule", "del", "priority", "32000"])
    a.run(["ip", "route", "add", "local", "default", "dev", "lo", "table", "888"])
    data["rules"].append({"family": "ipv4", "priority": 900, "ip_proto": "tcp", "action": "lookup", "table": 888})
    with pytest.raises(errors.Refused, match=r"`ip rule 900: from all ipproto tcp lookup 888` would deliver"):
        lab.engine.apply(a, data)


BECOMES = [("lo", {}), ("lo", {"iif": "eth0"}), ("eth0", {})]


@pytest.mark.parametrize(("dev", "bound"), BECOMES, ids=["on lo", "on lo, by interface", "on eth0"])
def test_the_keeper_removes_its_rule_while_the_address_is_on_the_host(lab, a, family, dev, bound, tmp_path):
    """As a virtual address that moves to this host, or an added /32."""
    data = copy.deepcopy(local_delivery(lab["b"]))
    data["rules"] = [{**rule, **bound} for rule in data["rules"]]
    source, bits = address_of(lab["b"], family), BITS[family]
    with keeping(lab, "a", tmp_path, data) as running:
        eventually(lambda: "in place" in running.state["story"])
        assert len(rules_from(a, family, source)) == 3
        a.run(ip(family, "addr", "add", f"{source}/{bits}", "dev", dev, *(["nodad"] if family == "ipv6" else [])))
        eventually(lambda: not rules_from(a, family, source))
        eventually(lambda: f"{source} is an address of this host itself" in running.log)
        eventually(lambda: running.state["documents"]["local_delivery"]["state"] == "waiting")
        assert f"{source} is an address of this host itself" in running.state["story"]
        assert ("own_traffic", source) in complaints(lab, a, running.documents)
        a.run(ip(family, "addr", "del", f"{source}/{bits}", "dev", dev))
        eventually(lambda: len(rules_from(a, family, source)) == 3)
        eventually(lambda: running.state["documents"]["local_delivery"]["state"] == "in place")
        assert running.repairs == 0, "nobody took anything away"
    assert handshake(a, "198.51.100.11", lab["b"].ipv4) in ("established", "silent")


def test_at_boot_such_a_rule_is_never_added(lab, a, family, tmp_path):
    """With a document of version 0.1.0, the keeper starts before the network, so the address does not exist yet."""
    own, other = address_of(a, family), address_of(lab["b"], family)
    network = {"ipv4": ("24", "198.18.0.1"), "ipv6": ("64", "2001:db8::1")}[family]
    a.run(ip(family, "addr", "del", f"{own}/{network[0]}", "dev", "eth0"))
    monitor = a.spawn(["ip", "monitor", "rule"])
    try:
        with keeping(lab, "a", tmp_path, local_delivery(lab["b"], a)) as running:
            eventually(lambda: f"waiting for a route to {own}" in running.state["story"])
            more = ["nodad"] if family == "ipv6" else ["brd", "+"]
            a.run(ip(family, "addr", "add", f"{own}/{network[0]}", "dev", "eth0", *more))
            a.run(ip(family, "route", "replace", "default", "via", network[1]))
            eventually(lambda: len(rules_from(a, family, other)) == 3)
            eventually(lambda: f"{own} is an address of this host itself" in running.state["story"])
            assert reached(lab, family) == "established"
    finally:
        monitor.terminate()
        monitor.wait()
    told = monitor.log.read_text(encoding="utf-8")
    assert f"from {other} " in told
    assert f"from {own} " not in told


@pytest.mark.parametrize("main", [True, False], ids=["main address", "an address for it alone"])
def test_a_return_path_by_the_main_address_is_refused(lab, main):
    """All packets from that address would go to the proxy, also replies to direct clients."""
    with left_as_found(lab, "b") as b:
        own = b.ipv4 if main else "198.18.0.33"
        b.run(["ip", "addr", "replace", "198.18.0.33/32", "dev", "eth0"])
        rule = {"family": "ipv4", "priority": 1100, "iif": "lo", "src": own, "action": "lookup", "table": 20411}
        route = {"family": "ipv4", "table": 20411, "dst": "default", "via": lab["a"].ipv4}
        data = {"schema": 1, "owner": "return_path", "protocol": 202, "rules": [rule], "routes": [route]}
        if main:
            with pytest.raises(errors.Refused, match=r"because 198.18.0.21 is its default source address"):
                lab.engine.apply(b, data)
        else:
            lab.engine.apply(b, data)
        b.run(["ip", "addr", "del", "198.18.0.33/32", "dev", "eth0"])
