# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Foreign rules on a backend that change marks or bypass conntrack: reported exactly if traffic fails."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tests.kernel.doctor.clinic import CLIENTS, SECOND
from tests.lab import wiring
from tests.support.routing import PORT, handshake, local_delivery

# Sysctls of strategy fwmark_accept.
WITHOUT_CONNTRACK = ["net.ipv4.tcp_fwmark_accept", "net.ipv4.fwmark_reflect", "net.ipv6.fwmark_reflect"]


@pytest.fixture(params=["mark", "fwmark_accept"])
def strategy(request):
    return request.param


@pytest.fixture
def backend(clinic, strategy, tmp_path):
    """A function that returns the doctor's findings on b with that strategy; foreign tables are removed in the end."""
    document = clinic.documents["b"]
    if strategy == "fwmark_accept":
        marks = [{**mark, "conntrack": False} for mark in document["marks"]]
        settings = [{"name": name, "value": "1"} for name in WITHOUT_CONNTRACK]
        document = {**document, "marks": marks, "sysctls": [*document["sysctls"], *settings]}
    clinic.lab.engine.apply(clinic.lab["b"], document)
    (tmp_path / "return_path.json").write_text(json.dumps(document))

    def complaints(check: str, ports=()) -> list:
        found = clinic.complaints("b", ports, directory=str(tmp_path))
        return [finding for finding in found if finding.id == check]

    assert complaints("mark_clobbered") == []
    yield complaints
    flush = [f"{command} -t {name} -F" for command in ("iptables", "ip6tables") for name in ("mangle", "filter", "raw")]
    clean = "; ".join(["nft delete table inet t", *flush, "true"])
    clinic.lab["b"].run(["sh", "-c", clean])
    clinic.heal("b")


def outcome(clinic, family: str) -> str:
    return handshake(clinic.lab["a"], CLIENTS[family], getattr(clinic.lab["b"], family))


def table(base: str, rule: str) -> str:
    return f"nft 'table inet t {{ chain c {{ type {base}; policy accept; {rule}; }}; }}'"


OUTPUT, ROUTED = "filter hook output priority", "route hook output priority"
PREROUTING, INPUT = "filter hook prerouting priority", "filter hook input priority"
BOTH = "mark fwmark_accept"
# Rules that set a mark: (command, the strategies that it breaks).
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
def test_a_foreign_mark_is_reported_exactly_if_it_breaks_traffic(clinic, backend, strategy, command, harmed):
    clinic.lab["b"].run(["sh", "-c", command])
    harms = strategy in harmed.split()
    assert outcome(clinic, "ipv4") == ("silent" if harms else "established")
    assert [finding.status for finding in backend("mark_clobbered")] == (["fail"] if harms else [])


@pytest.mark.parametrize("strategy", ["mark"], indirect=True)
def test_a_chain_at_our_own_priority_is_a_warning(clinic, backend, strategy):
    """It breaks traffic only if our table is loaded after it."""
    clinic.lab["b"].run(["iptables", "-t", "mangle", "-A", "OUTPUT", "-j", "MARK", "--set-mark", "0xca6c"])
    assert outcome(clinic, "ipv4") == "established"
    assert [finding.status for finding in backend("mark_clobbered")] == ["warn"]
    clinic.lab["b"].run(["nft", "delete", "table", "inet", "l4proxy_return_path"])
    clinic.heal("b")
    assert outcome(clinic, "ipv4") == "silent"
    assert [finding.status for finding in backend("mark_clobbered")] == ["warn"]


RAW, RAW_OUT = "filter hook prerouting priority raw", "filter hook output priority raw"
AT = f"tcp dport {PORT}"
IPTABLES_AT = f"-p tcp --dport {PORT}"
# Rules that bypass conntrack: (commands, whether only a given port makes the finding certain).
UNTRACKED = {
    "nft, requests": ([table(RAW, f"{AT} notrack")], True),
    "nft, replies": ([table(RAW_OUT, f"tcp sport {PORT} notrack")], True),
    "nft, everything": ([table(RAW, "notrack")], False),
    "iptables": ([f"{{iptables}} -t raw -A PREROUTING {IPTABLES_AT} -j CT --notrack"], True),
    "iptables, everything": (["{iptables} -t raw -A OUTPUT -j NOTRACK"], False),
    "SYNPROXY": (
        [
            f"{{iptables}} -t raw -A PREROUTING {IPTABLES_AT} --syn -j CT --notrack",
            f"{{iptables}} -A INPUT {IPTABLES_AT} -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY --mss 1460",
        ],
        True,
    ),
}
# Rules that come too late to bypass conntrack, or match other traffic.
TRACKED = [table("filter hook prerouting priority 0", f"{AT} notrack"), table(RAW, "udp dport 53 notrack")]


def untrack(clinic, name: str, commands: list[str], family: str) -> None:
    iptables = {"ipv4": "iptables", "ipv6": "ip6tables"}[family]
    for command in commands:
        clinic.lab[name].run(["sh", "-c", command.replace("{iptables}", iptables)])


@pytest.mark.parametrize(("commands", "by_port"), UNTRACKED.values(), ids=UNTRACKED)
def test_rules_that_bypass_conntrack_are_reported(clinic, backend, strategy, commands, by_port, family):
    if strategy != "mark" and "SYNPROXY" in commands[-1]:
        pytest.skip("a SYN proxy answers before there is a socket that could keep a mark")
    untrack(clinic, "b", commands, family)
    harms = strategy == "mark"
    assert outcome(clinic, family) == ("silent" if harms else "established")
    unnamed = "warn" if by_port else "fail"
    others = set() if by_port else {"fail"}
    for ports, expected in (([("tcp", PORT)], {"fail"}), ([], {unnamed}), ([("udp", 9)], others)):
        assert {finding.status for finding in backend("untracked", ports)} == (expected if harms else set()), ports


@pytest.mark.parametrize("command", TRACKED)
def test_notrack_rules_for_other_traffic_are_not_reported(clinic, backend, command):
    untrack(clinic, "b", [command], "ipv4")
    assert outcome(clinic, "ipv4") == "established"
    assert backend("untracked", [("tcp", PORT)]) == []


def test_strategy_address_needs_no_conntrack(clinic, family):
    """d has strategy address; a delivers replies from d's second address."""
    a, d = clinic.lab["a"], clinic.lab["d"]
    clinic.lab.engine.apply(a, local_delivery(clinic.lab["b"], SimpleNamespace(**SECOND)))
    untrack(clinic, "d", [table(RAW, "notrack"), table(RAW_OUT, "notrack").replace("chain c", "chain e")], family)
    try:
        # Nothing listens there; the refusal proves that the path works.
        assert handshake(a, CLIENTS[family], SECOND[family]) not in ("silent", "established")
        assert [finding for finding in clinic.complaints("d") if finding.id == "untracked"] == []
    finally:
        d.run(["nft", "delete", "table", "inet", "t"])
        clinic.heal("a")


@pytest.fixture
def isolated(clinic):
    """Hosts see only the router, which answers ARP for all of them and forwards their packets."""
    router, ports = clinic.lab["router"], []
    for name in ("a", "b", "c", "d"):
        ports += [leg.port for leg in clinic.lab.topology.hosts[name].interfaces if leg.network.name == "inside"]
    dev = router.on("inside").dev
    settings = {f"net.ipv4.conf.{dev}.proxy_arp_pvlan": "1", f"net.ipv4.conf.{dev}.send_redirects": "0"}
    settings |= {"net.ipv4.conf.all.send_redirects": "0", f"net.ipv4.neigh.{dev}.proxy_delay": "0"}
    before = {name: router.run(["sysctl", "-n", name]).stdout.strip() for name in settings}

    def bring(state: str, values: dict[str, str]) -> None:
        with wiring.inside(clinic.lab.switch):
            for port in ports:
                wiring.run(["bridge", "link", "set", "dev", port, "isolated", state])
        for name, value in values.items():
            router.sysctl(name, value)
        for name in ("a", "b", "d", "router"):
            clinic.lab[name].run(["ip", "neigh", "flush", "all"])

    bring("on", settings)
    yield
    bring("off", before)


def test_a_router_that_answers_arp_for_every_neighbour_is_reported(clinic, isolated):
    b, a, mac = clinic.lab["b"], clinic.lab["a"], clinic.lab["router"].on("inside").mac

    def complaints() -> list:
        # Over IPv6 no host answers.
        host = clinic.lab.engine.host(b, neighbour_wait=0.5)
        found = [finding for finding in clinic.complaints("b", host=host) if finding.id == "proxy_mac"]
        return [finding for finding in found if f"has the same MAC as the router on eth0: {mac}" in finding.what]

    b.run(["ping", "-c", "1", "-W", "5", a.ipv4])
    assert outcome(clinic, "ipv4") != "established"
    assert [finding.status for finding in complaints()] == ["warn"], "it may be the router itself"
    b.run(["ping", "-c", "1", "-W", "5", clinic.lab["d"].ipv4])
    assert [finding.status for finding in complaints()] == ["fail"]
    assert "(also 198.18.0.1, 198.18.0.23)" in complaints()[0].what
    # Strategy address does not help: packets to the proxy's address still go to the router.
    clinic.lab.engine.apply(a, local_delivery(b, SimpleNamespace(**SECOND)))
    try:
        assert handshake(a, CLIENTS["ipv4"], SECOND["ipv4"]) == "silent"
    finally:
        clinic.heal("a")
