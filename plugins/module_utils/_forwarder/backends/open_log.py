# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines in the log about sessions that are open: at their start (``log_start``), and again and again (``log_every``).

A session is a relay of TCP or a flow of UDP. These keys do not depend on ``log``, which is about the line at the end.
Its fields that are known are in these lines, too. Client, client_port and listener, and the start of the session, which
is ``time`` minus ``duration``, are the same in all lines of a session.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from ..loop.event_loop import EventLoop
from ..loop.log import Log

PORTION = 200  # lines, about 5 ms
PAUSE = 0.05  # seconds
_NOT_YET = {"bytes_to_backend", "bytes_to_client", "datagrams_to_backend", "datagrams_to_client", "ended"}


def log_start(log: Log, event: str, session: Any, now: float) -> None:
    """Log that a session has begun, if its service wants that."""
    if session.service.log_start:
        fields = session.summary(now)
        log.event(f"{event} start", **{name: fields[name] for name in fields if name not in _NOT_YET})


def log_open(loop: EventLoop, event: str, sessions: Iterable[Any], before: float, now: float) -> None:
    """Log the sessions that have lasted for another ``log_every`` seconds since ``before``, when this was called last.

    It is found out from the start of a session, which therefore has to remember nothing.
    """
    due = []
    for session in sessions:
        every, started = session.service.log_every, session.started
        if every and (now - started) // every > max(0.0, before - started) // every:
            due.append(session)
    _log_some(loop, f"{event} open", due)


def _log_some(loop, event, sessions):
    """Log a portion now, and the others a moment later: traffic does not wait for thousands that began together."""
    now = loop.now()
    for session in sessions[:PORTION]:
        if session.alive:
            fields = session.summary(now)
            del fields["ended"]
            loop.log.event(event, **fields)
    if len(sessions) > PORTION:
        loop.timers.add(now + PAUSE, partial(_log_some, loop, event, sessions[PORTION:]))
