# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of the admin socket: one JSON request per line, one JSON answer per line.

{"op": "status"} · {"op": "drain" | "maintenance" | "ready", "backend": NAME (without a port: all ports of that host),
"service": NAME (absent: every service that has the backend)} · {"op": "weight", "backend", "service",
"weight": int or null (as configured)} · {"op": "sessions", "service", "backend", "limit"} · {"op": "log_level",
"level": NAME or null (as configured)}

An answer is {"ok": true, …} or {"ok": false, "error": sentence}. Overrides of backends survive a reload.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from typing import Protocol

from ..config.backend_names import matches
from ..config.config import Config
from ..config.defaults import MAX_NAME, WEIGHT
from ..counters.overrides import Overrides
from ..loop.log import LEVELS, Log
from .protocols import at_once
from .snapshot import Snapshot
from .status import pieces, status

STATES = {"drain": "draining", "maintenance": "maintenance", "ready": None}
SESSIONS_TIMEOUT = 2.0  # seconds that workers have to answer
MAX_SESSIONS = 100  # of one worker, and of one answer
MAX_NAMES = 50  # in one sentence
NOT_SERVING = "no config is served yet"


class Forwarder(Protocol):
    """What the commands use of the running forwarder; process/control.py implements it."""

    log: Log
    overrides: Overrides

    @property
    def config(self) -> Config | None:
        """The config that is served, None if there is none yet or this version cannot read it."""

    def snapshot(self) -> Snapshot | None:
        """Return the present state, None before the first config is served."""

    def publish_overrides(self) -> None:
        """Make the overrides known to all workers."""

    def set_log_level(self, level: str | None) -> None:
        """Set the level of all processes; None: as configured."""

    def ask_workers(self, question: dict) -> set[int]:
        """Send a message to all workers; return the pids of those that received it."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` after ``seconds``."""


class Refused(Exception):
    """A request that cannot be served; the message is one sentence."""


class Admin:
    """Answers the requests of admin clients."""

    def __init__(self, forwarder: Forwarder):
        self._forwarder = forwarder
        self._pending: dict[int, dict] = {}  # requests that wait for answers of workers, by number
        self._number = 0
        self._deferred = {"status": self._status, "sessions": self._sessions}  # commands that write their own answer
        self._commands = {
            "weight": self._weight,
            "log_level": self._log_level,
            **dict.fromkeys(STATES, self._state),
        }

    def answer(self, client, line):
        """Answer one line of a client (connection.Connection), at once or later."""
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise Refused("a request must be a JSON object")
            if self._forwarder.config is None:
                raise Refused(NOT_SERVING)
            op = request.get("op") if isinstance(request.get("op"), str) else None
            if op in self._deferred:
                self._deferred[op](client, request)
                return
            if op not in self._commands:
                raise Refused(f"op must be one of {', '.join(sorted([*self._commands, *self._deferred]))}")
            reply = self._commands[op](request)
        except Refused as error:
            reply = {"ok": False, "error": str(error)}
        except (ValueError, RecursionError):
            reply = {"ok": False, "error": "a request must be one JSON object on one line"}
        _write(client, reply)

    def _status(self, client, _request):
        snapshot = self._forwarder.snapshot()
        if snapshot is None:
            raise Refused(NOT_SERVING)
        document = pieces(status(snapshot))
        client.write(at_once(chain(['{"ok": true, "status": '], document, ["}\n"])))

    # -- overrides of backends -------------------------------------------------------------------------------------

    def _state(self, request):
        return self._override(request, "state", STATES[request["op"]])

    def _weight(self, request):
        weight = request.get("weight")
        if weight is not None and not _is_number(weight, WEIGHT.high):
            raise Refused(f"weight must be a whole number from 1 to {WEIGHT.high}, or null for the configured one")
        return self._override(request, "weight", weight)

    def _override(self, request, key, value):
        """Set an override of a backend; the answer says in which services, and whether anything changed."""
        forwarder = self._forwarder
        backends = self._find(request)
        changed = [service for service, name in backends if forwarder.overrides.set(service, name, key, value)]
        if changed:
            forwarder.publish_overrides()
            fields = {"backend": request["backend"], key: value or "as configured"}
            forwarder.log.event("backend override", services=list(dict.fromkeys(changed)), **fields)
        services = list(dict.fromkeys(service for service, _name in backends))
        return {"ok": True, "changed": bool(changed), "services": services}

    def _find(self, request):
        """Return [(service, name of the backend in it)] of a request; raise Refused."""
        backend, service = request.get("backend"), request.get("service")
        config = self._forwarder.config
        services = config.services if config else ()
        names = [each.name for each in services]
        if service is not None and service not in names:
            raise Refused(f"there is no service {service!r} (there are {_listing(names)})")
        wanted = [each for each in services if service in (None, each.name)]
        found = [(each.name, one.name) for each in wanted for one in each.backends if matches(backend, one.name)]
        if not found:
            names = sorted({one.name for each in wanted for one in each.backends})
            raise Refused(f"there is no backend {backend!r} (there are {_listing(names)})")
        return found

    # -- log level and sessions ------------------------------------------------------------------------------------

    def _log_level(self, request):
        level = request.get("level")
        if level is not None and (not isinstance(level, str) or level not in LEVELS):
            raise Refused(f"level must be one of {', '.join(LEVELS)}, or null for the configured one")
        log = self._forwarder.log
        before = log.level
        self._forwarder.set_log_level(level)
        return {"ok": True, "changed": log.level != before, "level": log.level}

    def _sessions(self, client, request):
        """Ask all workers for sessions; the answer is written when all have answered or SESSIONS_TIMEOUT is over."""
        limit = request.get("limit", MAX_SESSIONS)
        if not _is_number(limit, MAX_SESSIONS):
            raise Refused(f"limit must be a whole number from 1 to {MAX_SESSIONS}")
        filters = {key: request.get(key) for key in ("service", "backend")}
        for key, name in filters.items():
            if name is not None and not (isinstance(name, str) and len(name) <= MAX_NAME):
                raise Refused(f"{key} must be the name of a {key}, or null for all")
        self._number += 1
        number = self._number
        pids = self._forwarder.ask_workers({"sessions": number, "limit": limit, **filters})
        self._pending[number] = {"client": client, "pids": pids, "count": 0, "sessions": [], "limit": limit}
        self._forwarder.call_later(SESSIONS_TIMEOUT, lambda: self._finish(number))
        self._finish_if_complete(number)

    def worker_answered(self, pid: int, message: dict):
        """Take the answer of a worker to a question about sessions."""
        pending = self._pending.get(message["answer"])
        if pending is None or pid not in pending["pids"]:
            return
        pending["pids"].discard(pid)
        pending["count"] += message["count"]
        pending["sessions"] += message["sessions"]
        self._finish_if_complete(message["answer"])

    def worker_ended(self, pid: int):
        """Stop waiting for answers of a worker that has ended."""
        for number, pending in list(self._pending.items()):
            pending["pids"].discard(pid)
            self._finish_if_complete(number)

    def _finish_if_complete(self, number):
        if number in self._pending and not self._pending[number]["pids"]:
            self._finish(number)

    def _finish(self, number):
        pending = self._pending.pop(number, None)
        if pending is None:
            return
        oldest = sorted(pending["sessions"], key=lambda session: -session["duration"])[: pending["limit"]]
        reply = {"ok": True, "count": pending["count"], "sessions": oldest, "silent_workers": len(pending["pids"])}
        _write(pending["client"], reply)


def _is_number(value, most):
    """Whether a value of a request is a whole number from 1 to ``most``. (In Python, True is an int as well.)"""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _listing(names):
    """Return names for a sentence, at most MAX_NAMES of them."""
    more = [f"and {len(names) - MAX_NAMES} more"] if len(names) > MAX_NAMES else []
    return ", ".join([*names[:MAX_NAMES], *more])


def _write(client, reply):
    client.write(json.dumps(reply).encode() + b"\n")
