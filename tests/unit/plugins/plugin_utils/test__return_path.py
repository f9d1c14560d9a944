# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._reachability import subnets_of_host
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path import describe_strategy, return_path

from tests.unit.tables import rows

from .fleet_data import BOTH, FAST, WEB, errors, facts, fleet, hostvars, two_links


def test_with_strategy_mark_each_proxy_has_a_mark_a_table_and_guarded_rules():
    variables = hostvars(a2={"l4proxy_mac": "02:00:00:00:00:12"})
    document = return_path(fleet("b", proxies=["a", "a2"], variables=variables), "b")
    assert [(mark["name"], mark["id"], mark["mac"], mark["via"]) for mark in document["marks"]] == [
        ("a", 11, None, ["198.18.0.11", "2001:db8::11"]),
        ("a2", 12, "02:00:00:00:00:12", ["198.18.0.12", "2001:db8::12"]),
    ]
    lookups = [rule for rule in document["rules"] if rule["action"] == "lookup"]
    keys = [(rule["family"], rule["fwmark"], rule["table"]) for rule in lookups]
    assert keys == [("ipv4", 11, 20111), ("ipv6", 11, 20111), ("ipv4", 12, 20112), ("ipv6", 12, 20112)]
    assert [rule["priority"] for rule in document["rules"] if rule["action"] == "unreachable"] == [1101] * 4
    vias = {(f"{net}{host}", 20100 + host, "eth0") for net in ("198.18.0.", "2001:db8::") for host in (11, 12)}
    assert {(route["via"], route["table"], route["dev"]) for route in document["routes"]} == vias


def test_the_sysctl_of_an_interface_with_a_dot_has_slashes():
    variables = hostvars(b={"ansible_facts": facts(21, device="eth0.100")})
    names = {one["name"] for one in return_path(fleet("b", variables=variables), "b")["sysctls"]}
    assert "net/ipv4/conf/eth0.100/accept_redirects" in names


ELSEWHERE = facts(11, ipv4={"address": "10.9.9.9", "prefix": "24"}, ipv6=[])
WIDE = {
    name: {"ansible_facts": facts(number, ipv4={"address": f"10.0.0.{number}", "prefix": "16"}, ipv6=[])}
    for name, number in (("a", 11), ("b", 21))
}
BAD_PROXIES = [
    ("no shared subnet", ["a"], {"a": {"ansible_facts": ELSEWHERE}},
     "proxy a (10.9.9.9/24) shares no subnet with backend b (198.18.0.21/24, 2001:db8::21/64)"),
    ("the same id", ["a", "a2"], {"a2": {"l4proxy_id": 11}}, "proxies a and a2 have the same id, 11"),
    ("no id", ["a"], WIDE, "proxy a needs l4proxy_id (1 to 255)"),
    # The other proxy alone would not do: no reply may bypass a proxy that is down.
    ("an unknown address", ["a", "a2"], {"a2": {"ansible_facts": {}}},
     "the address of a2 is unknown to b: its facts could not be gathered, and no"),
]  # fmt: skip


@pytest.mark.parametrize(("proxies", "variables", "sentence"), **rows(BAD_PROXIES))
def test_a_proxy_that_the_backend_cannot_answer_is_refused(proxies, variables, sentence):
    (fault,) = errors(return_path, fleet("b", variables=hostvars(**variables), proxies=proxies), "b")
    assert fault.startswith(sentence)


def test_a_proxy_that_is_down_keeps_its_known_address():
    before = return_path(fleet("b", proxies=["a", "a2"]), "b")
    variables = hostvars(a2={"ansible_facts": {}})
    after = fleet("b", variables=variables, proxies=["a", "a2"], known={"return_path": before})
    assert return_path(after, "b") == before


def test_a_backend_that_no_service_names_and_a_strategy_that_differs_from_the_inventory_are_refused():
    (found,) = errors(return_path, fleet("d", [{**WEB, "backends": ["b:80"]}]), "d")
    assert found.startswith("d is in the group backends, but no service of l4proxy_services names it")
    (found,) = errors(return_path, fleet("b"), "b", "address")
    assert found.startswith("return_path_strategy of b is address in this play, but mark in the inventory")


def tunnelled(*macs: str) -> dict:
    """All hosts on a device wg0, with or without a MAC in the facts."""
    return {
        name: {"ansible_facts": facts(number, device="wg0", **dict(zip(["macaddress"], macs or [""])))}
        for name, number in (("a", 11), ("a2", 12), ("b", 21))
    }


@pytest.mark.parametrize("mac", ["", "0a:08:00:02"], ids=["wireguard", "gre"])
@pytest.mark.parametrize("strategy", ["mark", "fwmark_accept", "auto"])
def test_two_proxies_behind_a_tunnel_cannot_be_told_apart(strategy, mac):
    variables = hostvars(**tunnelled(mac))
    variables["b"]["return_path_strategy"] = strategy
    (found,) = errors(return_path, fleet("b", variables=variables, proxies=["a", "a2"]), "b")
    assert found.startswith(f"return_path_strategy of b: {strategy}")
    assert "a and a2 are both behind wg0, which has no MAC addresses to tell them apart; " in found
    assert found.endswith("use address" if strategy != "auto" else "set return_path_addresses of b")


def test_one_proxy_alone_may_be_behind_a_tunnel():
    variables = hostvars(**tunnelled())
    variables["b"]["return_path_strategy"] = "auto"
    variables["b"]["ansible_facts"]["default_ipv6"] = {"address": "2001:db8::21"}
    seen = fleet("b", variables=variables)
    assert describe_strategy(seen, "b")["strategy"] == "mark"
    assert describe_strategy(seen, "b")["reason"].endswith("; only one proxy is behind wg0")
    assert return_path(seen, "b")["marks"][0]["mac"] is None


def test_two_links_between_one_pair_are_refused():
    variables = hostvars(**two_links(11, "a"), **two_links(21, "b"))
    other = {**WEB, "name": "other", "listen": ["0.0.0.0:81"], "backends": [{"host": "b", "address": "198.18.2.21"}]}
    (found,) = errors(return_path, fleet("b", [WEB, other], variables), "b")
    assert found.startswith("proxy a would reach backend b on two links (198.18.0.21 from 198.18.0.11 and 198.18.2.21")


OWN = {"a": ["198.18.0.121", "2001:db8::121"], "a2": ["198.18.0.122/24", "2001:db8::122"]}
ADDRESS = {"return_path_strategy": "address", "return_path_addresses": OWN}
ACCEPT = {"return_path_strategy": "fwmark_accept"}
DNS = {"name": "dns", "protocol": "udp", "listen": ["0.0.0.0:53", "[::]:53"], "backends": ["b"]}
TWO = ["a", "a2"]


def by_address(services=(WEB,), **changes):
    return fleet("b", services, hostvars(b=ADDRESS), **{"proxies": TWO, **changes})


def test_with_strategy_address_each_proxy_has_an_address_and_a_table():
    document = return_path(by_address(), "b")
    assert document["marks"] == []
    pairs = [("ipv4", "198.18.0.", 1), ("ipv6", "2001:db8::", 1), ("ipv4", "198.18.0.", 2), ("ipv6", "2001:db8::", 2)]
    addresses = [(one["family"], one["address"], one["dev"]) for one in document["addresses"]]
    assert addresses == [(family, f"{net}12{number}", "eth0") for family, net, number in pairs]
    rules = [(rule["src"], rule["iif"], rule["priority"], rule.get("table")) for rule in document["rules"]]
    assert rules[:2] == [("198.18.0.121", "lo", 1100, 20411), ("198.18.0.121", "lo", 1101, None)]
    assert len(rules) == 8
    routes = [(route["via"], route["src"], route["table"]) for route in document["routes"]]
    assert routes == [(f"{net}1{number}", f"{net}12{number}", 20410 + number) for _family, net, number in pairs]


def test_a_udp_port_of_a_single_proxy_has_a_rule_of_its_own_and_one_of_two_proxies_a_note():
    document = return_path(by_address([WEB, {**DNS, "proxies": ["a"]}]), "b")
    told = [(rule["family"], rule["sport"], rule["priority"]) for rule in document["rules"] if "sport" in rule]
    assert told == [("ipv4", 53, 1100), ("ipv4", 53, 1101), ("ipv6", 53, 1100), ("ipv6", 53, 1101)]
    both = by_address([WEB, DNS])
    assert not [rule for rule in return_path(both, "b")["rules"] if "sport" in rule]
    (note,) = describe_strategy(both, "b")["notes"]
    assert note.startswith("UDP port 53 of b is used by a, a2: a server that listens on all addresses there")


@pytest.mark.parametrize(("services", "count"), [([WEB], 1), ([WEB, DNS], 1), ([DNS], 0)])
def test_with_strategy_mark_accepted_tcp_sockets_keep_the_mark(services, count):
    document = return_path(fleet("b", services), "b")
    assert document["sysctls"].count({"name": "net.ipv4.tcp_fwmark_accept", "value": "1"}) == count


def test_fwmark_accept_has_marks_without_conntrack_and_sysctls():
    document = return_path(fleet("b", variables=hostvars(b=ACCEPT)), "b", "fwmark_accept", "iptables")
    assert [(mark["id"], mark["conntrack"]) for mark in document["marks"]] == [(11, False)]
    assert document["mark_engine"] == "iptables"
    expected = {"net.ipv4.tcp_fwmark_accept": "1", "net.ipv4.fwmark_reflect": "1", "net.ipv6.fwmark_reflect": "1"}
    assert {one["name"]: one["value"] for one in document["sysctls"] if "fwmark" in one["name"]} == expected


OFF_LINK = {**ADDRESS, "return_path_addresses": {"a": "10.0.0.9"}}
MAIN = {**ADDRESS, "return_path_addresses": {"a": "198.18.0.121"}, "ansible_host": "198.18.0.121"}
REFUSED = [
    ("an unknown strategy", {"return_path_strategy": "tunnel"}, [WEB], "'tunnel' is not a strategy of this version"),
    ("no addresses", {"return_path_strategy": "address"}, [WEB], "return_path_addresses has no address for proxy a"),
    ("the main address", MAIN, [WEB], "198.18.0.121 cannot be the address for a, because b uses it for all other"),
    ("an address off the link", OFF_LINK, [WEB], "shares no subnet with backend b (10.0.0.9)"),
    ("UDP", ACCEPT, [WEB, DNS], "return_path_strategy of b: fwmark_accept supports TCP only, but service dns is UDP"),
]


@pytest.mark.parametrize(("variables", "services", "sentence"), **rows(REFUSED))
def test_a_strategy_that_cannot_work_is_refused(variables, services, sentence):
    (found,) = errors(return_path, fleet("b", services, hostvars(b=variables)), "b")
    assert sentence in found


def test_two_strategies_share_no_object():
    """Both are applied while connections drain, so their keys must differ."""
    marked, addressed = return_path(fleet("b", proxies=TWO), "b"), return_path(by_address(), "b")

    def keys(document):
        rules = {str({**rule, "action": None, "table": None}) for rule in document["rules"]}
        return rules | {(route["family"], route["table"], route["dst"]) for route in document["routes"]}

    assert not keys(marked) & keys(addressed)


def test_auto_keeps_the_applied_strategy():
    before = return_path(fleet("b", proxies=TWO), "b")
    variables = hostvars(b={**ADDRESS, "return_path_strategy": "auto"})
    fresh = fleet("b", variables=variables, proxies=TWO)
    assert describe_strategy(fresh, "b")["strategy"] == "address"
    later = fleet("b", variables=variables, proxies=TWO, known={"return_path": before})
    assert describe_strategy(later, "b")["strategy"] == "mark"
    assert return_path(later, "b", "auto") == before


def test_auto_needs_a_default_route_only_in_families_that_are_served():
    lacking = facts(21) | {"default_ipv6": {}}
    variables = hostvars(b={"return_path_strategy": "auto", "ansible_facts": lacking})
    assert describe_strategy(fleet("b", variables=variables), "b")["strategy"] == "fwmark_accept"
    only_4 = {**WEB, "listen": ["0.0.0.0:80"]}
    assert describe_strategy(fleet("b", [only_4], variables), "b")["strategy"] == "mark"


def test_a_retiring_address_is_not_used_to_reach_the_backend():
    """IPv6 facts do not mark secondary addresses, and ::9 would come before ::21."""
    found = facts(21)
    found["eth0"]["ipv6"].insert(0, {"address": "2001:db8::9", "prefix": "64", "scope": "global"})
    old = {"addresses": [{"family": "ipv6", "address": "2001:db8::9", "dev": "eth0", "retiring": True}]}
    seen = fleet("b", variables=hostvars(b={"ansible_facts": found}), known={"return_path": old})
    assert str(subnets_of_host(seen, "a", "b")[6].backend.address) == "2001:db8::21"


# --- services that the kernel forwards

FAST_DNS = {**FAST, "name": "dns", "protocol": "udp", "listen": ["198.18.0.100:53"], "backends": ["b:53"]}
ALONE = {**FAST, "name": "alone", "listen": ["198.18.0.102:443"], "backends": ["b:9443"], "proxies": ["a"]}
A3 = {"proxies": ["a", "a2", "d"]}


def test_ports_of_kernel_services_follow_the_last_sender_and_have_a_table_that_may_move():
    plain = return_path(fleet("b", [WEB], **BOTH), "b")
    document = return_path(fleet("b", [WEB, FAST, FAST_DNS, ALONE], **BOTH), "b")
    assert [mark.pop("last_sender") for mark in document["marks"]] == [["tcp/8443", "udp/53"]] * 2
    assert document["marks"] == plain["marks"]
    added = {key: [one for one in document[key] if one not in plain[key]] for key in ("rules", "routes")}
    ports = {
        (rule["family"], rule["fwmark"], rule["ip_proto"], rule["sport"], rule["table"]) for rule in added["rules"]
    }
    expected = {("ipv4", "tcp", 8443), ("ipv6", "tcp", 8443), ("ipv4", "udp", 53)}
    assert ports == {(family, number, *port, 20700 + number) for number in (11, 12) for family, *port in expected}
    assert {rule["priority"] for rule in added["rules"]} == {1099}
    assert [(route["table"], route["via"], route["dev"], route["fallback"]) for route in added["routes"]] == [
        (20711, "198.18.0.11", "eth0", ["198.18.0.12"]), (20711, "2001:db8::11", "eth0", ["2001:db8::12"]),
        (20712, "198.18.0.12", "eth0", ["198.18.0.11"]), (20712, "2001:db8::12", "eth0", ["2001:db8::11"]),
    ]  # fmt: skip
    documents.load(document)


def test_without_a_second_proxy_no_port_follows_its_last_sender():
    as_forwarder = {key: value for key, value in FAST.items() if key != "datapath"}
    assert return_path(fleet("b", [FAST]), "b") == return_path(fleet("b", [as_forwarder]), "b")


def test_without_conntrack_the_mark_stays_and_only_the_route_may_move():
    document = return_path(fleet("b", [FAST], hostvars(b=ACCEPT), **BOTH), "b")
    assert [(mark["conntrack"], mark["last_sender"]) for mark in document["marks"]] == [(False, ["tcp/8443"])] * 2
    assert {rule["table"] for rule in document["rules"] if rule["priority"] == 1099} == {20711, 20712}


def test_a_table_moves_only_to_proxies_that_have_all_of_its_services():
    other = {**FAST, "name": "other", "listen": ["198.18.0.102:443"], "backends": ["b:9443"], "proxies": ["a", "d"]}
    seen = fleet("b", [{**FAST, "proxies": ["a", "a2"]}, other], **A3, backends=["b", "c"])
    document = return_path(seen, "b")
    assert {mark["name"]: mark["last_sender"] for mark in document["marks"]} == {
        "a": ["tcp/8443", "tcp/9443"], "a2": ["tcp/8443"], "d": ["tcp/9443"]
    }  # fmt: skip
    moving = {
        (one["via"], *one["fallback"]) for one in document["routes"] if one.get("fallback") and ":" not in one["via"]
    }
    assert moving == {("198.18.0.12", "198.18.0.11"), ("198.18.0.23", "198.18.0.11")}
    (note,) = describe_strategy(seen, "b")["notes"]
    assert note == (
        "the services fast, other of b have different proxies: if a fails, replies of their open connections are lost "
        "until the client sends something; give them the same proxies, so that any of these can take over"
    )


def test_strategy_address_is_refused_for_a_kernel_service_of_two_proxies():
    (found,) = errors(return_path, fleet("b", [FAST], hostvars(b=ADDRESS), **BOTH), "b")
    assert "a connection could not outlive its proxy" in found
    document = return_path(fleet("b", [{**FAST, "proxies": ["a"]}], hostvars(b=ADDRESS), **BOTH), "b")
    assert {rule["priority"] for rule in document["rules"]} == {1100, 1101}
