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


S, E, A = State, Event, Action

BOTH_CLOSED = "closed"
CLIENT_RESET = "client reset"
BACKEND_RESET = "backend reset"

_CLOSE_BOTH = (A.CLOSE_CLIENT, A.CLOSE_BACKEND, A.FINISH)
_PASS_RESET_TO_BACKEND = (A.CLOSE_CLIENT, A.RESET_BACKEND, A.FINISH)
_PASS_RESET_TO_CLIENT = (A.CLOSE_BACKEND, A.RESET_CLIENT, A.FINISH)
_RESET_BOTH = (A.RESET_CLIENT, A.RESET_BACKEND, A.FINISH)
_RESET_CLIENT = (A.RESET_CLIENT, A.FINISH)

# (state, event) -> (next state, actions in order, reason of the end). None: handle() is told the reason.
TABLE: dict[tuple[State, Event], tuple[State, tuple[Action, ...], str | None]] = {
    (S.CHOOSING, E.ATTEMPT): (S.CONNECTING, (), None),
    (S.CHOOSING, E.GIVEN_UP): (S.FINISHED, _RESET_CLIENT, None),
    (S.CHOOSING, E.ABORT): (S.FINISHED, _RESET_CLIENT, None),
    (S.CONNECTING, E.CONNECTED): (S.OPEN, (A.FORWARD,), None),
    (S.CONNECTING, E.ATTEMPT_FAILED): (S.CHOOSING, (A.DROP_ATTEMPT, A.CHOOSE), None),
    (S.CONNECTING, E.ABORT): (S.FINISHED, _RESET_BOTH, None),
    (S.OPEN, E.CLIENT_EOF): (S.CLIENT_ENDED, (A.SHUT_BACKEND,), None),
    (S.OPEN, E.BACKEND_EOF): (S.BACKEND_ENDED, (A.SHUT_CLIENT,), None),
    (S.CLIENT_ENDED, E.BACKEND_EOF): (S.FINISHED, _CLOSE_BOTH, BOTH_CLOSED),
    (S.BACKEND_ENDED, E.CLIENT_EOF): (S.FINISHED, _CLOSE_BOTH, BOTH_CLOSED),
}
for _state in (S.OPEN, S.CLIENT_ENDED, S.BACKEND_ENDED):
    TABLE[_state, E.CLIENT_RESET] = (S.FINISHED, _PASS_RESET_TO_BACKEND, CLIENT_RESET)
    TABLE[_state, E.BACKEND_RESET] = (S.FINISHED, _PASS_RESET_TO_CLIENT, BACKEND_RESET)
    TABLE[_state, E.ABORT] = (S.FINISHED, _RESET_BOTH, None)
for _event in E:  # what the other socket reports in the turn in which the session has ended
    TABLE[S.FINISHED, _event] = (S.FINISHED, (), None)

_FINISHED = S.FINISHED  # before Python 3.12, access to an enum member is slow
OPEN_SOCKETS: dict[State, set[str]] = {
    S.CHOOSING: {"client"},
    S.CONNECTING: {"client", "backend"},
    S.OPEN: {"client", "backend"},
    S.CLIENT_ENDED: {"client", "backend"},
    S.BACKEND_ENDED: {"client", "backend"},
    S.FINISHED: set(),
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

    table: ClassVar[CompiledTable]

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
