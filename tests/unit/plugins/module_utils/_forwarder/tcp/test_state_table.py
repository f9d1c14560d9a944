# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The session table: scripts of events and actions, and properties that hold for any sequence of events."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp.state_table import (
    OPEN_SOCKETS,
    Action,
    Event,
    ImpossibleEvent,
    Session,
    State,
    compiled,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tables import rows

A, E = Action, Event

CONNECT, FAILED = [(E.ATTEMPT, []), (E.CONNECTED, [A.FORWARD])], (E.ATTEMPT_FAILED, [A.DROP_ATTEMPT, A.CHOOSE])
CLOSED, REFUSED = [A.CLOSE_CLIENT, A.CLOSE_BACKEND, A.FINISH], [A.RESET_CLIENT, A.FINISH]
BOTH_RESET, CLIENT_ENDS = [A.RESET_CLIENT, A.RESET_BACKEND, A.FINISH], (E.CLIENT_EOF, [A.SHUT_BACKEND])
CLIENT_RESETS = (E.CLIENT_RESET, [A.CLOSE_CLIENT, A.RESET_BACKEND, A.FINISH])
BACKEND_RESETS = (E.BACKEND_RESET, [A.CLOSE_BACKEND, A.RESET_CLIENT, A.FINISH])


class Script(Session):
    """A session that only records its actions."""

    table = compiled({action: lambda session, action=action: session.actions.append(action) for action in Action})

    def __init__(self):
        super().__init__()
        self.actions = []

    def report(self, event, reason=None):
        """Report an event; return the actions that it led to."""
        self.actions = []
        self.handle(event, reason)
        return self.actions


TEST_SCRIPTS = [
    ("the client ends first", [*CONNECT, CLIENT_ENDS, (E.BACKEND_EOF, CLOSED)], "closed"),
    ("the backend ends first", [*CONNECT, (E.BACKEND_EOF, [A.SHUT_CLIENT]), (E.CLIENT_EOF, CLOSED)], "closed"),
    ("the client resets", [*CONNECT, CLIENT_RESETS, (E.BACKEND_EOF, [])], "client reset"),
    ("the backend resets after the client's end", [*CONNECT, CLIENT_ENDS, BACKEND_RESETS], "backend reset"),
    ("the second backend accepts", [(E.ATTEMPT, []), FAILED, *CONNECT, CLIENT_ENDS], None),
    ("no backend is left", [(E.ATTEMPT, []), FAILED, (E.GIVEN_UP, REFUSED)], "why"),
    ("refused before any attempt", [(E.GIVEN_UP, REFUSED)], "why"),
    ("stopped while connecting", [(E.ATTEMPT, []), (E.ABORT, BOTH_RESET)], "why"),
    ("drained for too long", [*CONNECT, (E.ABORT, BOTH_RESET)], "why"),
    ("stopped twice", [(E.ABORT, REFUSED), (E.ABORT, [])], "why"),
]


@pytest.mark.parametrize(("script", "ended"), **rows(TEST_SCRIPTS))
def test_a_script_of_events_leads_to_its_actions(script, ended):
    session = Script()
    for event, actions in script:
        reason = "why" if event in (E.GIVEN_UP, E.ABORT) else None
        assert session.report(event, reason) == actions
    assert session.ended == ended


def test_an_impossible_event_changes_nothing():
    session = Script()
    with pytest.raises(ImpossibleEvent, match="client eof while choosing"):
        session.handle(E.CLIENT_EOF)
    assert session.state is State.CHOOSING


class Sockets:
    """What the actions do to the two sockets; fails where they must not happen."""

    def __init__(self):
        self.open = {"client"}
        self.shut = set()
        self.finished = False

    def attempt(self):
        assert "backend" not in self.open
        self.open.add("backend")
        self.shut.discard("backend")

    def apply(self, action):
        verb, _space, end = action.value.partition(" ")
        if verb in ("close", "reset"):
            assert end in self.open, f"{action} of a closed socket"
            self.open.discard(end)
        elif verb == "shut":
            assert end in self.open
            assert end not in self.shut, "FIN twice"
            self.shut.add(end)
        elif action is A.DROP_ATTEMPT:
            self.open.remove("backend")
        elif action is A.FINISH:
            assert not self.finished
            assert not self.open, "finished before both are closed"
            self.finished = True


@given(st.lists(st.sampled_from(list(Event)), max_size=30))
def test_no_sequence_of_events_closes_a_socket_twice_or_leaves_it_open(events):
    session, sockets = Script(), Sockets()
    for event in [*events, E.ABORT]:
        before = session.state
        try:
            actions = session.report(event, "why")
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
