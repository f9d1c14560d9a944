# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of one relayed TCP connection as a table: events in, actions out.

Pure. Everything that decides what happens to the two sockets is in TABLE; the relay (relay.py) reports what it saw and
carries out the actions. Data is no event: it changes nothing here, only its end does. A direction ends when the
receiver has been given everything, because the relay does not read a side whose last chunk it still holds; so an EOF
can be carried on at once.

``client`` and ``backend`` are the two sides. CLOSE means close(2), which sends FIN if none was sent; RESET means that
the peer gets RST; SHUT means shutdown(SHUT_WR): FIN, and the other direction goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, ClassVar, Optional


class State(Enum):
    """Where a session is; the sides that are open follow from it (OPEN_SIDES)."""

    __hash__ = object.__hash__  # members are looked up for each event, and Enum would hash their names in Python

    CHOOSING = "choosing"  # a client, no upstream socket: before the first attempt and between two
    CONNECTING = "connecting"  # an upstream socket whose handshake is under way
    OPEN = "open"  # both directions flow
    CLIENT_ENDED = "client ended"  # client → backend is over and carried on, backend → client flows
    BACKEND_ENDED = "backend ended"  # the reverse
    FINISHED = "finished"


class Event(Enum):
    """What the relay saw."""

    __hash__ = object.__hash__

    ATTEMPT = "attempt"  # an upstream socket was made and its connect begun
    CONNECTED = "connected"
    ATTEMPT_FAILED = "attempt failed"  # refused, unreachable or too slow
    GIVEN_UP = "given up"  # nobody is left to try, or none may be tried
    CLIENT_EOF = "client eof"
    BACKEND_EOF = "backend eof"
    CLIENT_RESET = "client reset"
    BACKEND_RESET = "backend reset"
    ABORT = "abort"  # the worker wants it gone: drain deadline, immediate stop


class Action(Enum):
    """What the relay must do, in the order given."""

    __hash__ = object.__hash__

    RELAY = "relay"  # start reading both sides
    DROP_ATTEMPT = "drop attempt"  # close the upstream socket of a failed attempt
    CHOOSE = "choose"  # try the next backend, or give up
    SHUT_CLIENT = "shut client"
    SHUT_BACKEND = "shut backend"
    CLOSE_CLIENT = "close client"
    CLOSE_BACKEND = "close backend"
    RESET_CLIENT = "reset client"
    RESET_BACKEND = "reset backend"
    FINISH = "finish"  # both sockets are gone: count it, write its line in the log


S, E, A = State, Event, Action

BOTH_CLOSED = "closed"
CLIENT_RESET = "client reset"
BACKEND_RESET = "backend reset"

_CLOSE_BOTH = (A.CLOSE_CLIENT, A.CLOSE_BACKEND, A.FINISH)
_PASS_RESET_TO_BACKEND = (A.CLOSE_CLIENT, A.RESET_BACKEND, A.FINISH)
_PASS_RESET_TO_CLIENT = (A.CLOSE_BACKEND, A.RESET_CLIENT, A.FINISH)
_RESET_BOTH = (A.RESET_CLIENT, A.RESET_BACKEND, A.FINISH)
_RESET_CLIENT = (A.RESET_CLIENT, A.FINISH)

# (state, event) -> (next state, actions, reason). A reason of None at the end of a session means: the event carries it.
TABLE: dict[tuple[State, Event], tuple[State, tuple[Action, ...], str | None]] = {
    (S.CHOOSING, E.ATTEMPT): (S.CONNECTING, (), None),
    (S.CHOOSING, E.GIVEN_UP): (S.FINISHED, _RESET_CLIENT, None),
    (S.CHOOSING, E.ABORT): (S.FINISHED, _RESET_CLIENT, None),
    (S.CONNECTING, E.CONNECTED): (S.OPEN, (A.RELAY,), None),
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
for _event in E:  # what one side does in the same moment in which the other ended the session
    TABLE[S.FINISHED, _event] = (S.FINISHED, (), None)

_FINISHED = S.FINISHED  # before Python 3.12 finding a member takes a descriptor written in Python
OPEN_SIDES: dict[State, set[str]] = {
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
    """An event that cannot happen in this state was reported: a defect of the relay, never of a peer."""


def compiled(perform: Mapping[Action, Callable[[Any], None]]) -> CompiledTable:
    """Return TABLE for a Session whose actions are carried out by the functions ``perform[action](session)``."""
    return {key: (state, tuple(perform[one] for one in actions), why) for key, (state, actions, why) in TABLE.items()}


class Session:
    """The state of one connection; ``ended`` is the reason once it is finished.

    A subclass sets ``table`` to what compiled() gives for it.
    """

    __slots__ = ("ended", "state")

    table: ClassVar[CompiledTable]

    def __init__(self) -> None:
        self.state = State.CHOOSING
        self.ended: str | None = None

    def handle(self, event: Event, reason: str | None = None) -> None:
        """Move to the next state and carry out what the table says; raise ImpossibleEvent.

        ``reason`` says why, where the table cannot know it: GIVEN_UP, ABORT, and a reset that was none.
        """
        try:
            self.state, actions, why = self.table[self.state, event]
        except KeyError:
            raise ImpossibleEvent(f"{event.value} while {self.state.value}") from None
        if self.state is _FINISHED and self.ended is None:
            self.ended = reason or why or event.value
        for action in actions:  # the last may report the next event
            action(self)
