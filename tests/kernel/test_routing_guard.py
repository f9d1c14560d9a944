# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fail closed: a reply goes through its proxy or nowhere; and marks touch nobody else's bits or connections."""

from __future__ import annotations

import os

import pytest

from tests.kernel import routing_lab as rl
from tests.lab.netns import NamespaceLab

TABLE = "l4proxy_return_path"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with NamespaceLab(f"krg{os.getpid()}", ["client", "router", "a", "a2", "b"]) as raised:
        raised.engine = rl.Engine(tmp_path_factory.mktemp("engine"))
        raised.nginx("b", ports=[rl.PORT])
        for proxy in ("a", "a2"):
            raised.engine.apply(raised[proxy], rl.local_delivery(raised["b"]))
        make_whole(raised)
        yield raised


def make_whole(lab) -> None:
    lab.engine.apply(lab["b"], rl.return_path(lab["a"], lab["a2"]))


@pytest.fixture
def whole(lab):
    yield lab
    make_whole(lab)


ROUTE, LOOKUP = "ip {f} route flush table 20111", "ip {f} rule del priority 1100 fwmark 11/255 lookup 20111"
RULE = "ip {f} rule del priority 1101 fwmark 11/255 unreachable"
NFT = f"nft flush chain inet {TABLE} guard_11"
# what goes missing on b; does a reply leak; does the nft guard have to hold it
MISSING = [
    ([ROUTE], False, False),
    ([ROUTE, NFT], False, False),
    ([ROUTE, RULE], False, True),
    ([LOOKUP, RULE], False, True),
    ([LOOKUP, RULE, NFT], True, False),
    ([ROUTE, RULE, NFT], True, False),
]
NAMES = {ROUTE: "route", LOOKUP: "lookup", RULE: "guard rule", NFT: "nft guard"}


@pytest.mark.parametrize("family", rl.FAMILIES)
@pytest.mark.parametrize(
    ("commands", "leaks", "counted"), MISSING, ids=["+".join(map(NAMES.get, row[0])) for row in MISSING]
)
def test_replies_never_bypass_the_proxy(whole, family, commands, leaks, counted):
    b, source = whole["b"], rl.address(whole["client"], family)
    word = "ip" if family == "ipv4" else "ip6"
    rl.watch(whole["router"], "leaks", "forward priority 0", f"{word} saddr {rl.address(b, family)} counter")
    for command in commands:
        b.run(command.format(f="-4" if family == "ipv4" else "-6").split())
    # The client's own address as the source: if the reply leaks, the router does carry it to the client.
    with rl.attempt(whole["a"], source, rl.address(b, family)) as made:
        assert made.outcome() == "silent"
    assert (rl.counters(whole["router"], "leaks")["leaks"] > 0) == leaks
    assert (rl.counters(b, TABLE).get("guard_11", 0) > 0) == counted


def ask(made: rl.Attempt) -> bytes:
    """An HTTP request on an established connection; what comes back."""
    made.socket.settimeout(rl.PATIENCE)
    made.socket.send(b"GET / HTTP/1.0\r\n\r\n")
    return made.socket.recv(4096)


@pytest.mark.parametrize(("family", "port"), [("ipv4", 40001), ("ipv6", 40002)])
def test_another_proxys_syn_does_not_redirect_a_live_connection(lab, family, port):
    source, target = rl.address(lab["client"], family), rl.address(lab["b"], family)
    with rl.attempt(lab["a"], source, target, source_port=port) as first:
        assert first.outcome() == "established"
        with rl.attempt(lab["a2"], source, target, source_port=port) as second:
            assert second.outcome() == "silent"
            assert b"200 OK" in ask(first)


def test_it_would_if_the_mark_were_set_again(whole):
    """The negative control: the same with a rule that sets the mark whatever it was."""
    a2, b = whole["a2"], whole["b"]
    rl.watch(b, "again", "input priority -149", f"ether saddr {a2.mac} ct mark set ct mark and 0xffffff00 or 0xc")
    source, target = whole["client"].ipv4, b.ipv4
    try:
        with rl.attempt(whole["a"], source, target, source_port=40003) as first:
            assert first.outcome() == "established"
            with rl.attempt(a2, source, target, source_port=40003):
                # b's answer to the second SYN goes to a2 now, which resets the connection; a is never told.
                rl.eventually(lambda: "mark=12" in conntrack(b, 40003))
                first.socket.send(b"GET / HTTP/1.0\r\n\r\n")
                rl.eventually(lambda: first.retransmits >= 2)
                with pytest.raises(BlockingIOError):
                    first.socket.recv(1)
    finally:
        b.run(["nft", "delete", "table", "inet", "again"])


def conntrack(host, port: int) -> str:
    return host.run(["conntrack", "-L", "-p", "tcp", "--orig-port-src", str(port)], check=False).stdout


@pytest.mark.parametrize(("family", "port"), [("ipv4", 40004), ("ipv6", 40005)])
def test_marks_of_others_survive(lab, family, port):
    b = lab["b"]
    rl.watch(b, "early", "prerouting priority -160", "ct mark set ct mark or 0x10000", "meta mark set 0x40000")
    rl.watch(
        b, "kept_in", "input priority 0", "tcp dport 8080 meta mark and 0xff == 0xb meta mark and 0x40000 != 0 counter"
    )
    rl.watch(b, "own_out", "output priority -160", "tcp sport 8080 meta mark set 0x20000")
    rl.watch(b, "kept_out", "postrouting priority 0", "tcp sport 8080 meta mark 0x2000b counter")
    target = rl.address(b, family)
    try:
        with rl.attempt(lab["a"], rl.address(lab["client"], family), target, source_port=port) as made:
            assert made.outcome() == "established"
            listed = b.run(["conntrack", "-L", "-f", family, "-p", "tcp", "--orig-port-src", str(port)]).stdout
            assert f"mark={0x1000B}" in listed
        assert rl.counters(b, "kept_in")["kept_in"] > 0
        assert rl.counters(b, "kept_out")["kept_out"] > 0
    finally:
        for table in ("early", "kept_in", "own_out", "kept_out"):
            b.run(["nft", "delete", "table", "inet", table])
