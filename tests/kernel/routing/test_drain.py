# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Drain: objects that a document no longer lists are removed when their last connection has ended."""

from __future__ import annotations

import json
import time

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink import conntrack

from tests.support import routing
from tests.support.addresses import address_of
from tests.support.routing import PORT, Attempt, attempt, handshake, listing, local_delivery, return_path
from tests.support.waiting import PATIENCE, eventually

HOSTS = ["client", "router", "a", "a2", "b"]

DRAIN = 600.0
# Until then nothing is removed, since the proxy may not know yet that it is out.
SETTLED = DRAIN / 2 + 1


@pytest.fixture(scope="module")
def lab(lab):
    lab.nginx("b", ports=[PORT])
    for proxy in ("a", "a2"):
        lab.engine.apply(lab[proxy], local_delivery(lab["b"]))
    return lab


@pytest.fixture
def b(lab, b):
    lab.engine.apply(b, return_path(lab["a"], lab["a2"]))
    return b


def without_a2(lab, b, tmp_path, later: float = 0, **options):
    """Apply the document without a2, as the module does, ``later`` seconds from now."""
    return lab.engine.apply(b, return_path(lab["a"]), directory=str(tmp_path), now=time.time() + later, **options)


def has_a2(b) -> bool:
    return any(word in line for line in listing(b) for word in ("20112", "save_12", "fwmark 0xc/0xff"))


def request(made: Attempt) -> None:
    made.socket.send(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n")


def test_a_live_stream_survives_and_its_rules_go_when_it_ends(lab, b, tmp_path, family):
    with attempt(lab["a2"], address_of(lab["client"], family), address_of(b, family)) as stream:
        assert stream.outcome() == "established"
        outcome = without_a2(lab, b, tmp_path, drain=DRAIN)
        assert "nft mark a2 0xc/0xff" in " ".join(outcome.retiring)
        assert DRAIN / 2 - 10 < outcome.next_due <= DRAIN / 2
        assert has_a2(b)
        again = without_a2(lab, b, tmp_path, drain=DRAIN)
        assert (again.changes, again.retiring) == ((), outcome.retiring)
        stream.socket.settimeout(PATIENCE)
        for _exchange in range(2):
            request(stream)
            assert b"200 OK" in stream.socket.recv(4096)
    done = eventually(lambda: None if (found := without_a2(lab, b, tmp_path, SETTLED, drain=DRAIN)).retiring else found)
    assert done.next_due is None
    assert not has_a2(b)
    assert "retiring" not in (tmp_path / "return_path.json").read_text()


def test_without_drain_the_stream_breaks(lab, b, tmp_path):
    """The negative control."""
    with attempt(lab["a2"], lab["client"].ipv4, b.ipv4) as stream:
        assert stream.outcome() == "established"
        outcome = without_a2(lab, b, tmp_path)
        assert (outcome.retiring, outcome.next_due, has_a2(b)) == ((), None, False)
        request(stream)
        eventually(lambda: stream.retransmits >= 2)
        with pytest.raises(BlockingIOError):
            stream.socket.recv(1)


def test_unused_rules_stay_for_half_the_drain_time(lab, b, tmp_path, family):
    assert without_a2(lab, b, tmp_path, drain=DRAIN).retiring
    assert handshake(lab["a2"], address_of(lab["client"], family), address_of(b, family)) == "established"
    again = without_a2(lab, b, tmp_path, drain=DRAIN)
    assert (again.changes, bool(again.retiring)) == ((), True)
    done = eventually(lambda: None if (found := without_a2(lab, b, tmp_path, SETTLED, drain=DRAIN)).retiring else found)
    assert done.next_due is None
    assert not has_a2(b)


def test_retiring_rules_go_at_the_deadline_even_if_in_use(lab, b, tmp_path):
    with attempt(lab["a2"], lab["client"].ipv4, b.ipv4) as stream:
        assert stream.outcome() == "established"
        assert without_a2(lab, b, tmp_path, drain=DRAIN).retiring
        # As the keeper does: with the stored document and the time.
        stored = json.loads((tmp_path / "return_path.json").read_text())
        kept = lab.engine.apply(b, stored, now=time.time())
        assert (kept.changes, bool(kept.retiring)) == ((), True)
        over = lab.engine.apply(b, stored, now=time.time() + DRAIN)
        assert over.retiring == ()
        (cut,) = over.cut
        assert cut.sentence == (
            f"drain of nft mark a2 0xc/0xff via {lab['a2'].ipv4},{lab['a2'].ipv6} ended: 1 connection cut"
        )
        assert not has_a2(b)


ROLES = [("a", local_delivery, ("b", "a2"), ("b",)), ("b", return_path, ("a", "a2"), ("a",))]


@pytest.mark.usefixtures("b")
@pytest.mark.parametrize(("name", "document", "before", "after"), ROLES)
def test_a_run_after_the_keeper_has_ended_a_drain_changes_nothing(lab, tmp_path, name, document, before, after):
    """The keeper does not write documents: what it has removed leaves the stored one with the next run."""
    host, (earlier, smaller) = lab[name], (document(*map(lab.__getitem__, names)) for names in (before, after))
    options, now = {"directory": str(tmp_path), "drain": DRAIN}, time.time()
    path = tmp_path / f"{smaller['owner']}.json"
    lab.engine.apply(host, earlier, now=now, **options)
    assert lab.engine.apply(host, smaller, now=now, **options).changes == (f"write {path}",)
    kept = listing(host)
    assert lab.engine.apply(host, json.loads(path.read_text()), now=now + DRAIN).changed  # as the keeper does
    ended = listing(host)
    assert ended != kept
    for check in (True, False):
        assert "settle_at" in path.read_text()
        run = lab.engine.apply(host, smaller, now=now + DRAIN, check=check, **options)
        assert (run.changes, run.diff, listing(host)) == ((), (), ended)
    assert not [word for word in ("retiring", "settle_at") if word in path.read_text()]


def test_a_proxy_added_again_is_no_longer_retiring(lab, b, tmp_path):
    whole = return_path(lab["a"], lab["a2"])
    with attempt(lab["a2"], lab["client"].ipv4, b.ipv4) as stream:
        assert stream.outcome() == "established"
        before = listing(b)
        assert without_a2(lab, b, tmp_path, drain=DRAIN).retiring
        outcome = lab.engine.apply(b, whole, directory=str(tmp_path), now=time.time(), drain=DRAIN)
        assert outcome.retiring == ()
        assert listing(b) == before


def test_a_change_of_mark_engine_breaks_no_stream(lab, b, family):
    with attempt(lab["a"], address_of(lab["client"], family), address_of(b, family)) as stream:
        assert stream.outcome() == "established"
        stream.socket.settimeout(PATIENCE)
        for engine in ("iptables", "nftables"):
            lab.engine.apply(b, {**return_path(lab["a"], lab["a2"]), "mark_engine": engine})
            request(stream)
            assert b"200 OK" in stream.socket.recv(4096)
    for word in ("ip", "ip6"):  # where iptables had its chains
        b.run(["nft", "delete", "table", word, "mangle"])


def test_the_kernel_counts_connections_by_our_mark_bits_only(lab, b):
    target, source = b.ipv4, lab["client"].ipv4

    def counts() -> list[int]:
        return [len(list(conntrack.living(number, 255))) for number in (11, 12, 13)]

    routing.watch(b, "others", "prerouting priority -160", "ct mark set ct mark or 0x10000")
    try:
        with b.inside():
            before = counts()
        streams = [Attempt(lab[name], source, target) for name in ("a", "a", "a2")]
        assert [stream.outcome() for stream in streams] == ["established"] * 3
        with b.inside():
            found = counts()
            with conntrack.Netlink(conntrack.NETLINK_NETFILTER) as netlink:
                filtered = netlink.dump(conntrack.GET, conntrack.request(0x1000C, 0xFFFFFFFF))
                everything = netlink.dump(conntrack.GET, conntrack.request(0, 0))
        assert [after - earlier for after, earlier in zip(found, before)] == [2, 1, 0]
        assert 1 <= len(filtered) < len(everything), "it is the kernel that leaves the others out"
        for stream in streams:
            stream.close()

        def ended() -> bool:
            with b.inside():
                return counts() == before

        eventually(ended)
    finally:
        b.run(["nft", "delete", "table", "inet", "others"])
