# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``make bench`` refuses before it measures, and what one peer costs the others: nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.bench import __main__ as bench
from tests.bench import peers, picture, report
from tests.bench.measure import Sample, figure


@pytest.mark.parametrize(("pattern", "found"), [
    ("requests-64$", ["requests-64"]),
    ("requests-64$$", ["requests-64"]),  # as it was written while make took one $ away
    ("idle-8000|^udp-64-100$", ["udp-64-100", "idle-8000"]),
])  # fmt: skip
def test_works_are_chosen_by_a_regular_expression(pattern, found):
    assert [work.name for work in bench.chosen(False, pattern)] == found


@pytest.mark.parametrize(("pattern", "sentence"), [
    ("requests-(", "is not a regular expression"),
    ("nothing", "no work matches ONLY='nothing'; there are bulk-1-down"),
])  # fmt: skip
def test_a_pattern_that_chooses_nothing_is_refused(pattern, sentence):
    with pytest.raises(ValueError, match="ONLY=") as caught:
        bench.chosen(False, pattern)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(("text", "sentence"), [
    ("nothing", "is not NAME=COMMAND"),
    ("a b=true", "is not NAME=COMMAND"),
    ("haproxy=true {listen}", "haproxy is already the name of another peer"),
    ("mine=no-such-program {listen}", "program no-such-program not found"),
    ("mine=true {lisen}", "only {listen} and {backend} are filled in"),
    ("mine=true 'x", "is not a command line"),
])  # fmt: skip
def test_a_peer_that_cannot_be_one_is_refused(monkeypatch, text, sentence):
    monkeypatch.setenv("L4PROXY_BENCH_PEER", text)
    with pytest.raises(peers.BadPeer) as caught:
        peers.more()
    assert sentence in str(caught.value)


def test_a_peer_of_ones_own(monkeypatch):
    monkeypatch.delenv("L4PROXY_BENCH_PEER", raising=False)
    assert peers.more() == ()
    monkeypatch.setenv("L4PROXY_BENCH_PEER", "haproxy-3.5=true {listen} {backend}")
    assert [(peer.name, peer.complete) for peer in peers.more()] == [("haproxy-3.5", False)]


def test_a_peer_that_fails_takes_no_row_from_the_others(monkeypatch):
    monkeypatch.setenv("L4PROXY_BENCH_PEER", "mine=true {listen} {backend}")
    (work,) = bench.chosen(True, "bulk-1-down$")
    errors = {"mine": bench.NotServed("it does not listen on port 5201"), "nginx-1.26-tuned": RuntimeError("it fell")}

    def one_round(_lab, _work, peer, _seconds):
        if peer.name in errors:
            raise errors[peer.name]
        return Sample(rate=1.0)

    monkeypatch.setattr(bench, "one_round", one_round)
    found, failed = bench.measure(SimpleNamespace(offload=lambda _on: None), work, True)
    assert failed == errors
    assert set(found) == {peer.name for peer in bench.entrants(work, True)} - set(errors)
    assert "nginx" not in found, "a quick run has the best settings only"
    assert len(found["l4proxy"]["rate"].rounds) == bench.QUICK_ROUNDS
    monkeypatch.setenv("ROUNDS", "7")
    found, _failed = bench.measure(SimpleNamespace(offload=lambda _on: None), work, True)
    assert len(found["l4proxy"]["rate"].rounds) == 7


def test_the_cards_compare_with_the_best_proxy_and_count_from_the_direct_path():
    def values(rate: float, total: float) -> dict:
        return {"rate": figure([rate]), "total_per_unit": figure([total])}

    found = {"direct": values(200, 40), "dnat": values(150, 50), "kernel": values(150, 52), "l4proxy": values(90, 76)}
    text = report.cards({"requests-64": {**found, "nginx": values(100, 90), "haproxy": values(80, 80)}})
    row = next(line for line in text.splitlines() if "requests-64" in line).split()
    assert row == ["requests-64", "nginx,", "haproxy", "x0.90", "x0.90", "x1.50", "x0.30", "x1.04"]
    assert "CPU, forwarder: nowhere" in text
    assert "CPU, kernel: requests-64" in text


def test_the_picture_tells_peers_whose_names_have_dots():
    medians = {"bulk.l4proxy.rate": 2.0, "bulk.haproxy-3.5.rate": 1.0, "bulk.haproxy-3.5.p50": 1.0}
    figures = {name: {"median": median} for name, median in medians.items()}
    assert picture.shares(figures, "rate") == {"bulk": {"l4proxy": 1.0, "haproxy-3.5": 0.5}}
