# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The session table as scripts, and the laws it must keep whatever happens."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp.session import (
    OPEN_SOCKETS,
    TABLE,
    Action,
    Event,
    ImpossibleEvent,
    Session,
    State,
    compiled,
)
from hypothesis import given
from hypothesis import strategies as st

A, E = Action, Event
CONNECT = [(E.ATTEMPT, []), (E.CONNECTED, [A.FORWARD])]


class Script(Session):
    """A session whose actions are only noted."""

    table = compiled({action: lambda session, action=action: session.actions.append(action) for action in Action})

    def __init__(self):
        super().__init__()
        self.actions = []

    def told(self, event, reason=None):
        """Report an event, return the actions it led to."""
        self.actions = []
        self.handle(event, reason)
        return self.actions


TEST_SCRIPTS = [
    (
        "the client ends first",
        [*CONNECT, (E.CLIENT_EOF, [A.SHUT_BACKEND]), (E.BACKEND_EOF, [A.CLOSE_CLIENT, A.CLOSE_BACKEND, A.FINISH])],
        "closed",
    ),
    (
        "the backend ends first",
        [*CONNECT, (E.BACKEND_EOF, [A.SHUT_CLIENT]), (E.CLIENT_EOF, [A.CLOSE_CLIENT, A.CLOSE_BACKEND, A.FINISH])],
        "closed",
    ),
    (
        "the client resets",
        [*CONNECT, (E.CLIENT_RESET, [A.CLOSE_CLIENT, A.RESET_BACKEND, A.FINISH]), (E.BACKEND_EOF, [])],
        "client reset",
    ),
    (
        "the backend resets after the client's end",
        [*CONNECT, (E.CLIENT_EOF, [A.SHUT_BACKEND]), (E.BACKEND_RESET, [A.CLOSE_BACKEND, A.RESET_CLIENT, A.FINISH])],
        "backend reset",
    ),
    (
        "the second backend takes it",
        [(E.ATTEMPT, []), (E.ATTEMPT_FAILED, [A.DROP_ATTEMPT, A.CHOOSE]), *CONNECT, (E.CLIENT_EOF, [A.SHUT_BACKEND])],
        None,
    ),
    (
        "nobody is left",
        [(E.ATTEMPT, []), (E.ATTEMPT_FAILED, [A.DROP_ATTEMPT, A.CHOOSE]), (E.GIVEN_UP, [A.RESET_CLIENT, A.FINISH])],
        "why",
    ),
    ("refused before any attempt", [(E.GIVEN_UP, [A.RESET_CLIENT, A.FINISH])], "why"),
    ("stopped while connecting", [(E.ATTEMPT, []), (E.ABORT, [A.RESET_CLIENT, A.RESET_BACKEND, A.FINISH])], "why"),
    ("drained for too long", [*CONNECT, (E.ABORT, [A.RESET_CLIENT, A.RESET_BACKEND, A.FINISH])], "why"),
    ("stopped twice", [(E.ABORT, [A.RESET_CLIENT, A.FINISH]), (E.ABORT, [])], "why"),
]


@pytest.mark.parametrize(("_name", "script", "ended"), TEST_SCRIPTS, ids=[script[0] for script in TEST_SCRIPTS])
def test_scripts(_name, script, ended):
    session = Script()
    for event, actions in script:
        reason = "why" if event in (E.GIVEN_UP, E.ABORT) else None
        assert session.told(event, reason) == actions
    assert session.ended == ended


def test_an_impossible_event_changes_nothing():
    session = Script()
    with pytest.raises(ImpossibleEvent, match="client eof while choosing"):
        session.handle(E.CLIENT_EOF)
    assert session.state is State.CHOOSING


def test_every_state_can_be_aborted():
    assert all((state, E.ABORT) in TABLE for state in State)


class Sockets:
    """What the actions would do to the two sockets; refuses what must not happen."""

    def __init__(self):
        self.open = {"client"}
        self.shut = set()
        self.finished = False

    def attempt(self):
        assert "backend" not in self.open
        self.open.add("backend")
        self.shut.discard("backend")

    def apply(self, action):
        verb, _space, side = action.value.partition(" ")
        if verb in ("close", "reset"):
            assert side in self.open, f"{action} of a side that is closed"
            self.open.discard(side)
        elif verb == "shut":
            assert side in self.open
            assert side not in self.shut, "FIN twice"
            self.shut.add(side)
        elif action is A.DROP_ATTEMPT:
            self.open.remove("backend")
        elif action is A.FINISH:
            assert not self.finished
            assert not self.open, "finished before both sides are gone"
            self.finished = True


@given(st.lists(st.sampled_from(list(Event)), max_size=30))
def test_whatever_happens_no_side_is_closed_twice_or_left_open(events):
    session, sockets = Script(), Sockets()
    for event in [*events, E.ABORT]:
        before = session.state
        try:
            actions = session.told(event, "why")
        except ImpossibleEvent:
            assert session.state is before
            continue
        if event is E.ATTEMPT and before is State.CHOOSING:
            sockets.attempt()
        for action in actions:
            sockets.apply(action)
        assert sockets.open == OPEN_SOCKETS[session.state]
        assert (session.ended is not None) == (session.state is State.FINISHED)
    assert session.state is State.FINISHED
    assert not sockets.open
    assert sockets.finished


@given(st.permutations([E.CLIENT_EOF, E.BACKEND_EOF]))
def test_two_ends_in_any_order_end_the_session(ends):
    session = Script()
    for event in (E.ATTEMPT, E.CONNECTED, *ends):
        session.handle(event)
    assert session.state is State.FINISHED
