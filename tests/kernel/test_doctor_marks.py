# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules of others on a backend that take the marks or conntrack away: named where traffic fails, and only there."""

from __future__ import annotations

import json

import pytest

from tests.kernel import doctor_lab
from tests.kernel import routing_lab as rl

FAMILIES = pytest.mark.parametrize("family", rl.FAMILIES)
# What the strategies need of the kernel.
WITHOUT_CONNTRACK = ["net.ipv4.tcp_fwmark_accept", "net.ipv4.fwmark_reflect", "net.ipv6.fwmark_reflect"]


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    with doctor_lab.clinic("kdm", tmp_path_factory) as raised:
        yield raised


@pytest.fixture(params=["mark", "fwmark_accept"])
def strategy(request):
    return request.param


@pytest.fixture
def backend(clinic, strategy, tmp_path):
    """What the doctor says of b with that strategy; all tables of the test are gone afterwards."""
    document = clinic.documents["b"]
    if strategy == "fwmark_accept":
        marks = [{**mark, "conntrack": False} for mark in document["marks"]]
        settings = [{"name": name, "value": "1"} for name in WITHOUT_CONNTRACK]
        document = {**document, "marks": marks, "sysctls": [*document["sysctls"], *settings]}
    clinic.lab.engine.apply(clinic.lab["b"], document)
    (tmp_path / "return_path.json").write_text(json.dumps(document))

    def complaints(check: str, ports=()) -> list:
        found = clinic.complaints("b", ports, directory=str(tmp_path))
        return [one for one in found if one.id == check]

    assert complaints("mark_clobbered") == []
    yield complaints
    clean = "nft delete table inet t; iptables -t mangle -F; iptables -F; iptables -t raw -F; ip6tables -t raw -F; true"
    clinic.lab["b"].run(["sh", "-c", clean])
    clinic.heal("b")


def outcome(clinic, family: str) -> str:
    return rl.handshake(clinic.lab["a"], doctor_lab.CLIENTS[family], getattr(clinic.lab["b"], family))


def table(base: str, rule: str) -> str:
    return f"nft 'table inet t {{ chain c {{ type {base}; policy accept; {rule}; }}; }}'"


OUTPUT, ROUTED = "filter hook output priority", "route hook output priority"
PREROUTING, INPUT = "filter hook prerouting priority", "filter hook input priority"
BOTH = "mark fwmark_accept"
# Rules that set a mark: (command, the strategies it harms).
MARKS = {
    "a filter sets it after the packet was routed": (table(f"{OUTPUT} 0", "meta mark set 0xca6c"), ""),
    "a filter, early": (table(f"{OUTPUT} -300", "meta mark set 0xca6c"), ""),
    "a chain that routes, after ours": (table(f"{ROUTED} 0", "meta mark set 0xca6c"), BOTH),
    "a chain that routes, before ours": (table(f"{ROUTED} -300", "meta mark set 0xca6c"), "fwmark_accept"),
    "a chain that routes, other bits": (table(f"{ROUTED} 0", "meta mark set meta mark and 0xff or 0xca00"), ""),
    "postrouting": (table("filter hook postrouting priority 0", "meta mark set 0xca00"), ""),
    "a request's, before ours": (table(f"{PREROUTING} -300", "meta mark set 0x6c"), "fwmark_accept"),
    "a request's, before ours, other bits": (table(f"{PREROUTING} -300", "meta mark set 0xca00"), ""),
    "a request's, after ours": (table(f"{INPUT} 0", "meta mark set 0xca00"), "fwmark_accept"),
    "the connection's, before ours": (table(f"{PREROUTING} -160", "ct mark set 0x6c"), "mark"),
    "the connection's, before ours, other bits": (table(f"{PREROUTING} -160", "ct mark set 0xca00"), ""),
    "the connection's, after ours": (table(f"{INPUT} 0", "ct mark set 0xca00"), "mark"),
    "the connection's, on its way out": (table(f"{OUTPUT} -160", "ct mark set 0xca00"), "mark"),
    "iptables, the connection's other bits": ("iptables -t mangle -A PREROUTING -j CONNMARK --set-mark 0x100", ""),
    "iptables, bits of ours": ("iptables -t mangle -A PREROUTING -j CONNMARK --set-xmark 0x80/0x80", "mark"),
    "iptables, a filter": ("iptables -A OUTPUT -j MARK --set-mark 0xca6c", ""),
}


@pytest.mark.parametrize(("command", "harmed"), MARKS.values(), ids=MARKS)
def test_a_mark_is_a_fault_where_it_harms_and_only_there(clinic, backend, strategy, command, harmed):
    clinic.lab["b"].run(["sh", "-c", command])
    harms = strategy in harmed.split()
    assert outcome(clinic, "ipv4") == ("silent" if harms else "established")
    assert [one.status for one in backend("mark_clobbered")] == (["fail"] if harms else [])


@pytest.mark.parametrize("strategy", ["mark"], indirect=True)
def test_a_chain_at_our_own_priority_is_a_doubt(clinic, backend, strategy):
    """It harms once our table is loaded after it, and not before."""
    clinic.lab["b"].run(["iptables", "-t", "mangle", "-A", "OUTPUT", "-j", "MARK", "--set-mark", "0xca6c"])
    assert outcome(clinic, "ipv4") == "established"
    assert [one.status for one in backend("mark_clobbered")] == ["warn"]
    clinic.lab["b"].run(["nft", "delete", "table", "inet", "l4proxy_return_path"])
    clinic.heal("b")
    assert outcome(clinic, "ipv4") == "silent"
    assert [one.status for one in backend("mark_clobbered")] == ["warn"]
