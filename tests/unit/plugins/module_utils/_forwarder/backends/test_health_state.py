# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of a target, from the results of probes and from clients' connections."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends.health_state import (
    ClientConnects,
    HealthState,
    RoundResult,
    Verdict,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.shared_memory import (
    ANSWERED,
    BROKEN,
    DOWN,
    UNANSWERED,
    UNASKED,
    UNKNOWN,
    UP,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tables import rows

NO_CLIENTS = ClientConnects()
WELL, SILENT = RoundResult(True, True), RoundResult(False, False)
REFUSED, BROKEN_PATH = RoundResult(False, True), RoundResult(True, False)


# rise 2, fall 3: results (y good, n bad), and the verdict after each (? unasked, A answered, U unanswered).
@pytest.mark.parametrize(("answers", "verdicts"), [
    ("y", "A"),
    ("nnn", "??U"),
    ("nnyn", "??AA"),
    ("ynnn", "AAAU"),
    ("ynnynn", "AAAAAA"),
    ("ynnnyy", "AAAUUA"),
    ("nnnyny", "??UUUU"),
])  # fmt: skip
def test_a_verdict_follows_rise_and_fall(answers, verdicts):
    verdict = Verdict(rise=2, fall=3)
    letters = {UNASKED: "?", ANSWERED: "A", UNANSWERED: "U"}
    seen = ""
    for answer in answers:
        verdict.add(answer == "y")
        seen += letters[verdict.value]
    assert seen == verdicts
    assert verdict.failures == answers.count("n")


# rise 1, fall 1: the state after one round from 90 to 100; a client's success outweighs the spoofed probe for 6 s.
TEST_STATES = [
    ("well", WELL, NO_CLIENTS, UP),
    ("no answer at all", SILENT, NO_CLIENTS, DOWN),
    ("the port is closed, and the refusal arrives", REFUSED, NO_CLIENTS, DOWN),
    ("only the spoofed probe is unanswered", BROKEN_PATH, NO_CLIENTS, BROKEN),
    ("only the own address can probe", RoundResult(server=True), NO_CLIENTS, UP),
    ("only the own address can probe, without an answer", RoundResult(server=False), NO_CLIENTS, DOWN),
    ("a client succeeded during the round", BROKEN_PATH, ClientConnects(succeeded=95.0), UP),
    ("a client succeeded too long ago", BROKEN_PATH, ClientConnects(succeeded=86.5), BROKEN),
    ("a client succeeded within the window", RoundResult(True, False), ClientConnects(succeeded=94.5, failed=80.0), UP),
    ("a client succeeded, and another one failed", BROKEN_PATH, ClientConnects(succeeded=95.0, failed=96.0), UP),
    ("a client failed after the last success", BROKEN_PATH, ClientConnects(succeeded=89.0, failed=91.0), BROKEN),
    ("a client succeeded while no probe was answered", SILENT, ClientConnects(succeeded=91.0), UP),
    ("a client succeeded just before the server died", SILENT, ClientConnects(succeeded=89.0), DOWN),
]


@pytest.mark.parametrize(("answer", "real", "state"), **rows(TEST_STATES))
def test_the_state_after_one_round(answer, real, state):
    health = HealthState(rise=1, fall=1, window=6.0)
    assert health.state == UNKNOWN
    health.add(answer, real, started=90.0, now=100.0)
    assert health.state == state


def test_a_server_that_refuses_from_the_start_is_not_up_before_it_is_down():
    health, states = HealthState(rise=2, fall=3, window=6.0), []
    for started in (90.0, 92.0, 94.0):
        health.add(REFUSED, NO_CLIENTS, started, started + 0.1)
        states.append(health.state)
    assert states == [UNKNOWN, UNKNOWN, DOWN]


@pytest.mark.parametrize(("answer", "state"), [
    (RoundResult(False, False), DOWN),
    (RoundResult(True, False), UP),
    (RoundResult(False, True), DOWN),
])  # fmt: skip
def test_a_clients_handshake_shows_only_the_return_path_where_probes_ask_the_application(answer, state):
    health = HealthState(rise=1, fall=1, window=6.0, asks_application=True)
    health.add(answer, ClientConnects(succeeded=95.0), started=90.0, now=100.0)
    assert health.state == state


# rise 1, fall 1: rounds of a second, 10 s apart, whose spoofed probe is unanswered. The columns: the window, and when
# clients last succeeded and failed.
TEST_SILENCES = [
    ("a client is served in this silence, and others fail", 25.0, 15.0, 19.0, UP),
    ("the same, but too long ago", 15.0, 1.0, 19.0, BROKEN),
    ("a client was served before this silence, and nobody failed", 25.0, -1.0, -2.0, UP),
    ("a client was served before this silence, and another one failed", 25.0, -1.0, 5.0, BROKEN),
]


@pytest.mark.parametrize(("window", "succeeded", "failed", "state"), **rows(TEST_SILENCES))
def test_a_client_that_succeeds_while_probes_are_unanswered_keeps_the_target_up(window, succeeded, failed, state):
    health, zero = HealthState(rise=1, fall=1, window=window), 1000.0
    for begun in (0.0, 10.0, 20.0):
        real = ClientConnects(*(zero + second if second < begun else 0.0 for second in (succeeded, failed)))
        health.add(BROKEN_PATH, real, zero + begun, zero + begun + 1.0)
    assert health.state == state


def test_a_server_that_is_down_does_not_change_the_verdict_on_its_return_path():
    health = HealthState(rise=1, fall=1, window=6.0)
    health.add(WELL, NO_CLIENTS, 0.0, 1.0)
    health.add(SILENT, NO_CLIENTS, 2.0, 3.0)
    assert (health.state, health.path.value) == (DOWN, ANSWERED)
    health.add(WELL, NO_CLIENTS, 4.0, 5.0)
    assert health.state == UP


def test_a_result_that_contradicts_the_verdict_makes_the_state_uncertain():
    health = HealthState(rise=2, fall=3, window=6.0)
    health.add(WELL, NO_CLIENTS, 0.0, 1.0)
    assert not health.uncertain
    health.add(BROKEN_PATH, NO_CLIENTS, 2.0, 3.0)
    assert health.uncertain
    health.add(WELL, NO_CLIENTS, 4.0, 5.0)
    assert not health.uncertain


@given(st.integers(1, 5), st.integers(1, 5), st.lists(st.booleans(), max_size=60))
def test_a_verdict_changes_after_rise_or_fall_results_in_a_row_and_never_before(rise, fall, answers):
    verdict, before = Verdict(rise, fall), UNASKED
    for place, good in enumerate(answers, 1):
        verdict.add(good)
        if verdict.value != before:
            needed = fall if not good else 1 if before == UNASKED else rise
            assert answers[max(0, place - needed) : place] == [good] * needed
            assert verdict.value == (ANSWERED if good else UNANSWERED)
            before = verdict.value
        in_a_row = next((n for n, one in enumerate(answers[:place][::-1]) if one != good), place)
        assert in_a_row < (rise if good else fall) or verdict.value == (ANSWERED if good else UNANSWERED)
        assert verdict.uncertain == (verdict.value == UNASKED or good != (verdict.value == ANSWERED))


answers_of_a_round = st.builds(RoundResult, *[st.sampled_from([True, False, None])] * 2)


@given(st.lists(st.tuples(answers_of_a_round, st.booleans()), max_size=40))
def test_a_target_that_serves_clients_never_gets_worse_and_a_known_state_stays_known(rounds):
    health, now = HealthState(rise=2, fall=3, window=6.0), 100.0
    for answer, served in rounds:
        before = health.state
        now += 1.0
        real = ClientConnects(succeeded=now - 0.25) if served else NO_CLIENTS
        health.add(answer, real, started=now - 0.5, now=now)
        if served:  # the return path of a server that is up again may still count as broken
            assert health.state in (before, UP) or (before, health.state) == (DOWN, BROKEN)
        if before != UNKNOWN:
            assert health.state != UNKNOWN
        assert (health.state == DOWN) == (health.server.value == UNANSWERED)
