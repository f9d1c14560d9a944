# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What answers, refusals, silence and real connections make of a backend's state."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.health import (
    Answer,
    Experience,
    Question,
    Target,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.shared import (
    ANSWERED,
    BROKEN,
    DOWN,
    UNANSWERED,
    UNASKED,
    UNKNOWN,
    UP,
)

NOTHING = Experience()
WELL, SILENT, REFUSED, BROKEN_PATH = Answer(True, True), Answer(False, False), Answer(False, True), Answer(True, False)

# rise 2, fall 3; each letter is one answer, the verdict after it below.
TEST_VERDICTS = [
    ("y", "A"),
    ("nnn", "??U"),
    ("nnyn", "??AA"),
    ("ynnn", "AAAU"),
    ("ynnynn", "AAAAAA"),
    ("ynnnyy", "AAAUUA"),
    ("nnnyny", "??UUUU"),
]


@pytest.mark.parametrize(("answers", "verdicts"), TEST_VERDICTS)
def test_rise_and_fall(answers, verdicts):
    question = Question(rise=2, fall=3)
    letters = {UNASKED: "?", ANSWERED: "A", UNANSWERED: "U"}
    seen = ""
    for answer in answers:
        question.note(answer == "y")
        seen += letters[question.verdict]
    assert seen == verdicts
    assert question.failures == answers.count("n")


# rise 1, fall 1: the state after one round that began at 90 and ended at 100; a success outranks for 6 s.
TEST_STATES = [
    ("well", WELL, NOTHING, UP),
    ("nobody is there", SILENT, NOTHING, DOWN),
    ("the port is closed, and a client would be told so", REFUSED, NOTHING, DOWN),
    ("clients' replies go astray", BROKEN_PATH, NOTHING, BROKEN),
    ("a firewall admits clients and not the proxy", Answer(True, True), NOTHING, UP),
    ("only the own address can ask", Answer(server=True), NOTHING, UP),
    ("only the own address can ask, in vain", Answer(server=False), NOTHING, DOWN),
    ("a client succeeded a moment ago", BROKEN_PATH, Experience(succeeded=95.0), UP),
    ("a client succeeded before that, but not long ago", BROKEN_PATH, Experience(succeeded=86.5), BROKEN),
    ("a client succeeded within the window", Answer(True, False), Experience(succeeded=94.5, failed=80.0), UP),
    ("a client succeeded, and the next one failed", BROKEN_PATH, Experience(succeeded=95.0, failed=96.0), BROKEN),
    ("a client was served while we asked in vain", SILENT, Experience(succeeded=91.0), UP),
    ("a client was served just before the server died", SILENT, Experience(succeeded=89.0), DOWN),
]


@pytest.mark.parametrize(("answer", "real", "state"), [row[1:] for row in TEST_STATES], ids=[r[0] for r in TEST_STATES])
def test_states(answer, real, state):
    target = Target(rise=1, fall=1, window=6.0)
    assert target.state == UNKNOWN
    target.judge(answer, real, begun=90.0, now=100.0)
    assert target.state == state


def test_a_server_that_is_down_says_nothing_of_its_return_path():
    target = Target(rise=1, fall=1, window=6.0)
    target.judge(WELL, NOTHING, 0.0, 1.0)
    target.judge(SILENT, NOTHING, 2.0, 3.0)
    assert (target.state, target.path.verdict) == (DOWN, ANSWERED)
    target.judge(WELL, NOTHING, 4.0, 5.0)
    assert target.state == UP


def test_a_target_in_doubt_wants_its_next_round_soon():
    target = Target(rise=2, fall=3, window=6.0)
    target.judge(WELL, NOTHING, 0.0, 1.0)
    assert not target.wavering
    target.judge(BROKEN_PATH, NOTHING, 2.0, 3.0)
    assert target.wavering
    target.judge(WELL, NOTHING, 4.0, 5.0)
    assert not target.wavering
