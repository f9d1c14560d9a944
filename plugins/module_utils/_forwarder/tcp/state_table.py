# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of one relayed TCP connection as a table: events in, actions out.

Pure. TABLE decides what happens to the two sockets; the relay (relay.py) reports events and carries out the actions.
Data is not an event: only its end changes the state. When the relay reads an EOF it has forwarded all data before it,
because it does not read a socket while it still holds data from it. So the EOF can be forwarded at once.

CLOSE means close(2), which sends FIN unless one was sent. RESET means that the peer gets RST. SHUT means
shutdown(SHUT_WR): FIN, and the other direction stays open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, ClassVar, Optional


class State(Enum):
    """The state of a session. OPEN_SOCKETS says which of its sockets are open."""

    __hash__ = object.__hash__  # each event is a lookup by member, and Enum would hash the names in Python

    CHOOSING = "choosing"  # no upstream socket: before the first attempt and between two attempts
    CONNECTING = "connecting"  # the handshake of the upstream socket is under way
    OPEN = "open"  # both directions are open
    CLIENT_ENDED = "client ended"  # the client has sent FIN, and so has the upstream socket; backend → client is open
    BACKEND_ENDED = "backend ended"  # the other way round
    FINISHED = "finished"


class Event(Enum):
    """What the relay reports."""

    __hash__ = object.__hash__

    ATTEMPT = "attempt"  # connect() of an upstream socket has begun
    CONNECTED = "connected"
    ATTEMPT_FAILED = "attempt failed"  # refused, unreachable or timed out
    GIVEN_UP = "given up"  # the client is refused, or no backend is left to try
    CLIENT_EOF = "client eof"
    BACKEND_EOF = "backend eof"
    CLIENT_RESET = "client reset"
    BACKEND_RESET = "backend reset"
    ABORT = "abort"  # the worker ends it: idle timeout, drain timeout, immediate stop, defect


class Action(Enum):
    """What the relay has to do."""

    __hash__ = object.__hash__

    FORWARD = "forward"  # start to read both sockets
    DROP_ATTEMPT = "drop attempt"  # close the upstream socket of a failed attempt
    CHOOSE = "choose"  # begin an attempt with the next backend, or give up
    SHUT_CLIENT = "shut client"
    SHUT_BACKEND = "shut backend"
    CLOSE_CLIENT = "close client"
    CLOSE_BACKEND = "close backend"
    RESET_CLIENT = "reset client"
    RESET_BACKEND = "reset backend"
    FINISH = "finish"  # both sockets are closed: count and log the session


BOTH_CLOSED = "closed"
CLIENT_RESET = "client reset"
BACKEND_RESET = "backend reset"

_CLOSE_BOTH = (Action.CLOSE_CLIENT, Action.CLOSE_BACKEND, Action.FINISH)
_PASS_RESET_TO_BACKEND = (Action.CLOSE_CLIENT, Action.RESET_BACKEND, Action.FINISH)
_PASS_RESET_TO_CLIENT = (Action.CLOSE_BACKEND, Action.RESET_CLIENT, Action.FINISH)
_RESET_BOTH = (Action.RESET_CLIENT, Action.RESET_BACKEND, Action.FINISH)
_RESET_CLIENT = (Action.RESET_CLIENT, Action.FINISH)

# (state, event) -> (next state, actions in order, reason of the end). None: the caller of handle() knows it.
TABLE: dict[tuple[State, Event], tuple[State, tuple[Action, ...], str | None]] = {
    (State.CHOOSING, Event.ATTEMPT): (State.CONNECTING, (), None),
    (State.CHOOSING, Event.GIVEN_UP): (State.FINISHED, _RESET_CLIENT, None),
    (State.CHOOSING, Event.ABORT): (State.FINISHED, _RESET_CLIENT, None),
    (State.CONNECTING, Event.CONNECTED): (State.OPEN, (Action.FORWARD,), None),
    (State.CONNECTING, Event.ATTEMPT_FAILED): (State.CHOOSING, (Action.DROP_ATTEMPT, Action.CHOOSE), None),
    (State.CONNECTING, Event.ABORT): (State.FINISHED, _RESET_BOTH, None),
    (State.OPEN, Event.CLIENT_EOF): (State.CLIENT_ENDED, (Action.SHUT_BACKEND,), None),
    (State.OPEN, Event.BACKEND_EOF): (State.BACKEND_ENDED, (Action.SHUT_CLIENT,), None),
    (State.CLIENT_ENDED, Event.BACKEND_EOF): (State.FINISHED, _CLOSE_BOTH, BOTH_CLOSED),
    (State.BACKEND_ENDED, Event.CLIENT_EOF): (State.FINISHED, _CLOSE_BOTH, BOTH_CLOSED),
}
for _state in (State.OPEN, State.CLIENT_ENDED, State.BACKEND_ENDED):
    TABLE[_state, Event.CLIENT_RESET] = (State.FINISHED, _PASS_RESET_TO_BACKEND, CLIENT_RESET)
    TABLE[_state, Event.BACKEND_RESET] = (State.FINISHED, _PASS_RESET_TO_CLIENT, BACKEND_RESET)
    TABLE[_state, Event.ABORT] = (State.FINISHED, _RESET_BOTH, None)
for _event in Event:  # what the other socket reports in the turn in which the session has ended
    TABLE[State.FINISHED, _event] = (State.FINISHED, (), None)

_FINISHED = State.FINISHED  # before Python 3.12, access to an enum member is slow
OPEN_SOCKETS: dict[State, set[str]] = {
    State.CHOOSING: {"client"},
    State.CONNECTING: {"client", "backend"},
    State.OPEN: {"client", "backend"},
    State.CLIENT_ENDED: {"client", "backend"},
    State.BACKEND_ENDED: {"client", "backend"},
    State.FINISHED: set(),
}


#: TABLE with the functions that carry out the actions.
CompiledTable = Mapping[tuple[State, Event], tuple[State, tuple[Callable[[Any], None], ...], Optional[str]]]


class ImpossibleEvent(RuntimeError):
    """The relay reported an event that cannot happen in this state: a defect of the relay, never of a peer."""


def compiled(perform: Mapping[Action, Callable[[Any], None]]) -> CompiledTable:
    """Return TABLE with each action replaced by the function ``perform[action]``, which is called with the session."""
    return {
        key: (state, tuple(perform[action] for action in actions), reason)
        for key, (state, actions, reason) in TABLE.items()
    }


class Session:
    """The state of one connection; ``ended`` is the reason of its end, None until then.

    A subclass sets ``table`` to what compiled() returns for its methods.
    """

    __slots__ = ("ended", "state")

    table: ClassVar[CompiledTable] = {}

    def __init__(self) -> None:
        self.state = State.CHOOSING
        self.ended: str | None = None

    def handle(self, event: Event, reason: str | None = None) -> None:
        """Change the state and carry out the actions; raise ImpossibleEvent.

        ``reason`` says why the session ends where the table cannot know it: GIVEN_UP, ABORT, and the failure of a
        socket that was not a reset.
        """
        try:
            self.state, actions, why = self.table[self.state, event]
        except KeyError:
            raise ImpossibleEvent(f"{event.value} while {self.state.value}") from None
        if self.state is _FINISHED and self.ended is None:
            self.ended = reason or why or event.value
        for action in actions:  # the last one may report the next event
            action(self)
