# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Addresses of documents: reachable, never a default source, and never those of others."""

from __future__ import annotations

import copy
import math
import time

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing import errors
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import model
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink import kernel

from tests.support.addresses import address_of
from tests.support.routing import PORT, attempt, handshake, listing, local_delivery
from tests.support.waiting import PATIENCE, eventually

HOSTS = ["client", "router", "a", "b"]

SECOND = {"ipv4": "198.18.0.121", "ipv6": "2001:db8::121"}


@pytest.fixture(scope="module")
def lab(lab):
    lab.nginx("b", ports=[PORT])
    lab.engine.apply(lab["a"], local_delivery(lab["b"]))
    rules = [
        {"family": family, "priority": 1099, "src": address, "ip_proto": "tcp", "action": "lookup", "table": 20100}
        for family, address in SECOND.items()
    ]
    data = local_delivery(lab["b"])
    lab.engine.apply(lab["a"], {**data, "rules": [*data["rules"], *rules]})
    return lab


def document(lab) -> dict:
    """The document of strategy address: the second address identifies the proxy of a reply."""
    rules, routes = [], []
    for family, address in SECOND.items():
        chosen = {"family": family, "iif": "lo", "src": address}
        rules.append({**chosen, "priority": 1100, "action": "lookup", "table": 20111})
        rules.append({**chosen, "priority": 1101, "action": "unreachable"})
        routes.append({"family": family, "table": 20111, "dst": "default", "src": address}
                      | {"via": address_of(lab["a"], family)})  # fmt: skip
    addresses = [{"family": family, "address": address, "dev": "eth0"} for family, address in SECOND.items()]
    data = {"rules": rules, "routes": routes, "addresses": addresses}
    return {"schema": 1, "owner": "return_path", "protocol": 202, **data}


def test_a_spoofed_handshake_needs_the_second_address(lab, b, family):
    source = {"ipv4": "198.51.100.11", "ipv6": "2001:db8:ffff::11"}[family]
    lab.engine.apply(b, document(lab))
    assert handshake(lab["a"], source, SECOND[family]) == "established"
    # The negative control: without the address there is no answer.
    command = ["ip", "-4" if family == "ipv4" else "-6", "addr", "del", SECOND[family], "dev", "eth0"]
    b.run(command)
    assert handshake(lab["a"], source, SECOND[family]) != "established"


def sources(b) -> list[str | None]:
    """The default sources of the host: to a neighbour, beyond the router, and with an interface only."""
    targets = ("198.18.0.99", "198.51.100.1", "2001:db8::99", "2001:db8:5::1")
    with b.inside():
        return [kernel.route_get(target, oif=dev).src for target in targets for dev in (None, "eth0")]


def connected_routes(b) -> list[str]:
    commands = (["ip", "-4", "route", "show", "table", "main"], ["ip", "-6", "route", "show", "table", "main"])
    return [line for command in commands for line in b.run(command).stdout.splitlines()]


def test_an_added_address_is_no_default_source_and_adds_no_route(lab, b):
    before = sources(b), connected_routes(b)
    lab.engine.apply(b, document(lab))
    assert (sources(b), connected_routes(b)) == before


def test_an_added_address_is_no_default_source_even_as_the_only_one(lab, b):
    """The negative control: an address added with ip(8) becomes the source."""
    b.run(["ip", "link", "add", "alone0", "type", "veth", "peer", "name", "alone1"])
    for link in ("alone0", "alone1"):
        b.run(["ip", "link", "set", link, "up"])
    # The kernel removes an interface's routes with its last address.
    route = ["ip", "route", "replace", "10.50.0.0/16", "dev", "alone0"]
    b.run(route)
    data = {key: value for key, value in document(lab).items() if key not in ("rules", "routes")}
    data["addresses"] = [{"family": "ipv4", "address": "198.18.0.122", "dev": "alone0"}]
    lab.engine.apply(b, data)
    with b.inside():
        ours = kernel.route_get("10.50.0.1").src
    lab.engine.remove(b, "return_path")
    b.run(["ip", "addr", "add", "198.18.0.122/32", "dev", "alone0"])
    b.run(route)
    with b.inside():
        plain = kernel.route_get("10.50.0.1").src
    b.run(["ip", "link", "del", "alone0"])
    assert (ours, plain) == (b.ipv4, "198.18.0.122")


def test_an_address_reads_back_and_is_restored_after_a_link_flap(lab, b):
    assert lab.engine.apply(b, document(lab)).owned["addresses"] == document(lab)["addresses"]
    assert not lab.engine.apply(b, document(lab)).changed
    b.run(["ip", "link", "set", "eth0", "down"])
    b.run(["ip", "link", "set", "eth0", "up"])
    b.run(["ip", "route", "replace", "default", "via", "198.18.0.1"])
    b.run(["ip", "-6", "addr", "replace", f"{b.ipv6}/64", "dev", "eth0", "nodad"])
    b.run(["ip", "-6", "route", "replace", "default", "via", "2001:db8::1"])
    changes = lab.engine.apply(b, document(lab)).changes
    assert "add ip -6 addr 2001:db8::121 dev eth0" in changes, "IPv6 forgets addresses when a link goes down"
    assert "add ip route default via 198.18.0.11 dev eth0 table 20111 src 198.18.0.121" in changes


def test_addresses_are_added_first_and_removed_last(lab, b):
    changes = lab.engine.apply(b, document(lab)).changes
    assert [change.split(" addr ")[0] for change in changes[:2]] == ["add ip", "add ip -6"]
    changes = lab.engine.remove(b, "return_path").changes
    assert [" addr " in change for change in changes[-2:]] == [True, True]


def test_a_smaller_document_purges_only_its_own_addresses(lab, b):
    b.run(["ip", "addr", "add", "198.18.0.130/32", "dev", "eth0"])
    b.run(["ip", "addr", "add", "198.18.0.131/32", "dev", "eth0", "metric", str(0x4C347000 | 201)])
    lab.engine.apply(b, document(lab))
    smaller = document(lab)
    smaller["addresses"] = smaller["addresses"][1:]
    smaller["rules"] = [rule for rule in smaller["rules"] if rule["family"] == "ipv6"]
    smaller["routes"] = [route for route in smaller["routes"] if route["family"] == "ipv6"]
    outcome = lab.engine.apply(b, smaller)
    assert [change for change in outcome.changes if " addr " in change] == ["remove ip addr 198.18.0.121 dev eth0"]
    shown = b.run(["ip", "-4", "addr"]).stdout
    assert "198.18.0.130" in shown, "set by another tool"
    assert "198.18.0.131" in shown, "of another owner of ours"
    for address in ("198.18.0.130", "198.18.0.131"):
        b.run(["ip", "addr", "del", f"{address}/32", "dev", "eth0"])


def test_an_address_that_others_added_is_refused(lab, b):
    b.run(["ip", "addr", "add", "198.18.0.121/24", "dev", "eth0"])
    before = listing(b)
    with pytest.raises(errors.Refused, match=r"address 198\.18\.0\.121 is already on this host and not ours"):
        lab.engine.apply(b, document(lab))
    lab.engine.remove(b, "return_path")
    assert listing(b) == before
    b.run(["ip", "addr", "del", "198.18.0.121/24", "dev", "eth0"])


def test_an_address_moves_to_another_interface_when_its_last_connection_has_ended(lab, b, family, tmp_path):
    lab.engine.apply(b, document(lab))
    b.run(["ip", "link", "add", "other0", "type", "veth", "peer", "name", "other1"])
    b.run(["ip", "link", "set", "other0", "up"])
    data = document(lab)
    for address in data["addresses"]:
        address["dev"] = "other0"
    options = {"directory": str(tmp_path), "drain": math.inf}

    def devices(later: float = 0) -> set[str]:
        outcome = lab.engine.apply(b, data, now=time.time() + later, **options)
        return {address["dev"] for address in outcome.owned["addresses"] if address["address"] == SECOND[family]}

    with attempt(lab["a"], address_of(lab["client"], family), SECOND[family]) as stream:
        assert stream.outcome() == "established"
        assert devices() == devices(86400 * 365) == {"eth0", "other0"}
        stream.socket.settimeout(PATIENCE)
        # What a knows of its neighbour is forgotten, so that b must answer for the address again.
        lab["a"].run(["ip", "neigh", "flush", "dev", "eth0"])
        stream.socket.send(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n")
        assert b"200 OK" in stream.socket.recv(4096)
    eventually(lambda: devices(86400 * 365) == {"other0"})
    assert not lab.engine.apply(b, data).changed
    lab.engine.remove(b, "return_path")
    b.run(["ip", "link", "del", "other0"])


@pytest.mark.parametrize(("dev", "up"), [("nope0", False), ("down0", False)])
def test_the_engine_waits_for_a_link_that_is_down_or_missing(lab, b, dev, up):
    b.run(["ip", "link", "add", "down0", "type", "veth", "peer", "name", "down1"])
    data = document(lab)
    data["addresses"][0]["dev"] = dev
    before = listing(b)
    with pytest.raises(errors.NotReady, match=f"waiting for link {dev} to be up"):
        lab.engine.apply(b, data)
    assert listing(b) == before
    b.run(["ip", "link", "del", "down0"])


def test_a_failed_run_removes_the_address_again(lab, b):
    class Failing(kernel.Kernel):
        def set_route(self, route: model.Route, protocol: int) -> None:
            raise kernel.NetlinkError(12, "Cannot allocate memory")

    before = listing(b)
    with pytest.raises(errors.ApplyError, match="changes made so far were undone"):
        lab.engine.apply(b, document(lab), {"make_kernel": Failing})
    assert listing(b) == before


def test_check_mode_predicts_the_changes_of_addresses(lab, b):
    before = listing(b)
    foretold = lab.engine.apply(b, document(lab), check=True)
    assert listing(b) == before
    assert foretold == lab.engine.apply(b, copy.deepcopy(document(lab)))


ANYCAST = {"ipv4": "203.0.113.80", "ipv6": "2001:db8:80::80"}


def announced(*families: str) -> dict:
    entries = [{"family": family, "address": ANYCAST[family]} for family in families]
    return {"schema": 1, "owner": "announce", "protocol": 205, "announce": entries}


def test_an_announced_address_is_local_without_an_address_of_lo_and_goes_with_its_token(lab, b, family):
    """A connected route of the same prefix would keep FRR from announcing the token."""
    before, lo = listing(b), ["ip", "addr", "show", "dev", "lo"]
    addresses, flag = b.run(lo).stdout, "-4" if family == "ipv4" else "-6"
    assert lab.engine.apply(b, announced(family)).changed
    assert b.run(lo).stdout == addresses
    assert b.run(["ip", flag, "route", "get", ANYCAST[family]]).stdout.startswith("local")
    assert lab.engine.apply(b, announced(family)).owned["announce"] == announced(family)["announce"]
    for metric in ("1", "2"):
        b.run(["ip", flag, "route", "add", "blackhole", ANYCAST[family], "proto", "205", "metric", metric])
    assert not lab.engine.apply(b, announced(family)).changed, "tokens are the keeper's"
    assert b.run(["ip", flag, "route", "get", ANYCAST[family]]).stdout.startswith("local"), "no packet reaches a token"
    other = "ipv6" if family == "ipv4" else "ipv4"
    assert len(lab.engine.apply(b, announced(other)).changes) == 2
    assert ANYCAST[family] not in b.run(["ip", flag, "route", "show", "table", "all"]).stdout
    lab.engine.remove(b, "announce")
    assert listing(b) == before


def test_an_announced_address_that_others_put_on_lo_is_refused_and_stays(lab, b, family):
    b.run(["ip", "addr", "add", ANYCAST[family], "dev", "lo"])
    before = listing(b)
    with pytest.raises(errors.Refused, match=rf"{ANYCAST[family]} is on lo as well, .* remove it there"):
        lab.engine.apply(b, announced(family))
    lab.engine.remove(b, "announce")
    assert listing(b) == before
    b.run(["ip", "addr", "del", ANYCAST[family], "dev", "lo"])
