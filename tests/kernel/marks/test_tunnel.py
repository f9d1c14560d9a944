# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Marks where no MAC identifies the proxy: tunnels, and interfaces without ARP."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import Refused

from tests.kernel.marks.tunnel import tunnel
from tests.support.addresses import FAMILIES
from tests.support.marking import NFT, VARIANTS, marked
from tests.support.routing import PORT, handshake, local_delivery, return_path

HOSTS = ["router", "a", "a2", "b"]

FWMARK_ACCEPT = tuple((f"net.ipv4.{name}", "1") for name in ("tcp_fwmark_accept", "fwmark_reflect"))


@dataclass(frozen=True)
class End:
    """A host at its end of the tunnel, with the attributes that documents need."""

    name: str
    ipv4: str
    ipv6: str
    mac: None = None


A, B = End("a", "10.8.0.1", "fd00:8::1"), End("b", "10.8.0.2", "fd00:8::2")
SOURCES = {"ipv4": "198.51.100.11", "ipv6": "2001:db8:ffff::11"}


@pytest.fixture(scope="module")
def lab(lab):
    lab.nginx("b", ports=[PORT])
    with tunnel(lab["a"], lab["b"]):
        lab.engine.apply(lab["a"], local_delivery(B))
        yield lab


@pytest.fixture(params=VARIANTS, ids=str)
def b(lab, request):
    with marked(lab, "b", request.param) as host:
        yield host


def document(*ends: End, conntrack: bool = True) -> dict:
    """A document as the derivation writes it, with an id for each proxy."""
    data = return_path(*ends, sysctls=() if conntrack else FWMARK_ACCEPT)
    for number, mark in enumerate(data["marks"], 11):
        for rule in data["rules"]:
            if rule["fwmark"] == mark["id"]:
                rule["fwmark"] = number
        mark.update({"id": number} if conntrack else {"id": number, "conntrack": False})
    return data


def handshakes(lab) -> list[str]:
    return [handshake(lab["a"], SOURCES[family], getattr(B, family)) for family in FAMILIES]


@pytest.mark.parametrize("conntrack", [True, False], ids=["mark", "fwmark_accept"])
def test_a_single_proxy_behind_a_tunnel_is_recognised_by_the_interface(lab, b, conntrack):
    done = b.apply(document(A, conntrack=conntrack))
    assert done.waiting == ()
    assert [mark.iif for mark in b.read().marks] == ["wg0"]
    assert handshakes(lab) == ["established"] * 2
    assert not b.apply(document(A, conntrack=conntrack)).changed
    b.write(())
    assert handshakes(lab) == ["silent"] * 2


def test_marks_by_interface_stay_while_the_tunnel_is_down(lab):
    """The first packet after the tunnel comes up is then marked; the routes come back with the tunnel."""
    with marked(lab, "b", NFT) as b:
        b.apply(document(A))
        b.run("ip link set wg0 down")
        try:
            b.apply(document(A), partial=True)
            assert [mark.iif for mark in b.read().marks] == ["wg0"]
        finally:
            b.run("ip link set wg0 up")
            b.run("ip address replace fd00:8::2/64 dev wg0 nodad")
        b.apply(document(A))
        assert handshakes(lab) == ["established"] * 2


def test_an_interface_without_arp_needs_a_declared_mac(lab):
    a, host = lab["a"], lab["b"]
    host.run(["ip", "link", "set", host.dev, "arp", "off"])
    try:
        with marked(lab, "b", NFT) as b:
            with pytest.raises(Refused, match=f"{host.dev} does not use ARP.*declare l4proxy_mac"):
                b.apply(return_path(a))
            b.apply(return_path(a, mac=True))
            b.run(f"ip neigh replace {a.ipv4} lladdr {a.mac} dev {host.dev} nud permanent")
            b.run(f"ip neigh replace {a.ipv6} lladdr {a.mac} dev {host.dev} nud permanent")
            b.apply(return_path(a))
            assert b.read().marks[0].macs == (a.mac,)
    finally:
        host.run(["ip", "link", "set", host.dev, "arp", "on"])
        host.run(["ip", "neigh", "flush", "all"])
