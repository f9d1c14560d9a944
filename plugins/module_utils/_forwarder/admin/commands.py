# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The admin socket: one JSON request a line, one JSON answer a line.

{"op": "status"} · {"op": "drain" | "maintenance" | "ready", "backend": NAME (of a host that is there as host:port: all
of its ports), "service": NAME (none: every service that has the backend)} · {"op": "weight", "backend", "service",
"weight": int or null (as configured)} · {"op": "sessions", "service", "backend", "limit"} · {"op": "log_level",
"level": NAME or null (as configured)}

An answer is {"ok": true, …} or {"ok": false, "error": one sentence}. What is said of backends is kept over reloads.
"""

from __future__ import annotations

import json
from itertools import chain

from ..config.backend_names import means
from ..config.defaults import MAX_NAME, WEIGHT
from ..loop.log import LEVELS
from .protocols import at_once
from .status import pieces, status

STATES = {"drain": "draining", "maintenance": "maintenance", "ready": None}
SESSIONS_TIMEOUT = 2.0  # seconds the workers have to answer
MOST_SESSIONS = 100  # of one worker in one answer
MOST_NAMES = 50  # in a sentence


def _is_number(value, most):
    """Whether a value of a request is a whole number from 1 to ``most``; JSON's true is none, though Python's is."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _some(names):
    """Spell a list of names in a sentence: all, or as many as a sentence may have."""
    more = [f"and {len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
    return ", ".join([*names[:MOST_NAMES], *more])


class Refused(Exception):
    """A request that cannot be served; the message is one sentence."""


class Admin:
    """Answers the requests of admin clients for a Supervisor."""

    def __init__(self, supervisor):
        self._supervisor = supervisor
        self._asked = {}  # questions to the workers under way, by number
        self._number = 0
        self._writers = {"status": self._status, "sessions": self._sessions}  # they write the answer themselves
        self._ops = {
            "weight": self._weight,
            "log_level": self._log_level,
            **dict.fromkeys(STATES, self._state),
        }

    def answer(self, client, line):
        """Answer one line of a client (endpoint.Client)."""
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise Refused("a request is a JSON object")
            if self._supervisor.serving is None or self._supervisor.serving.config is None:
                raise Refused("no config is served yet")
            op = request.get("op") if isinstance(request.get("op"), str) else None
            if op in self._writers:
                self._writers[op](client, request)
                return
            if op not in self._ops:
                raise Refused(f"op is one of {', '.join(sorted([*self._ops, *self._writers]))}")
            reply = self._ops[op](request)
        except Refused as error:
            reply = {"ok": False, "error": str(error)}
        except (ValueError, RecursionError):
            reply = {"ok": False, "error": "a request is one JSON object on one line"}
        _write(client, reply)

    def _status(self, client, _request):
        document = pieces(status(self._supervisor))
        client.write(at_once(chain(['{"ok": true, "status": '], document, ["}\n"])))

    # -- what is said of backends ----------------------------------------------------------------------------------

    def _state(self, request):
        return self._order(request, "state", STATES[request["op"]])

    def _weight(self, request):
        weight = request.get("weight")
        if weight is not None and not _is_number(weight, WEIGHT.high):
            raise Refused(f"weight is a whole number from 1 to {WEIGHT.high}, or null for the config's")
        return self._order(request, "weight", weight)

    def _order(self, request, key, value):
        """Say something of a backend; the answer tells in which services, and whether that was new."""
        supervisor = self._supervisor
        found = self._find(request)
        changed = [service for service, name in found if supervisor.overrides.give(service, name, key, value)]
        if changed:
            for generation in (supervisor.serving, supervisor.candidate):
                if generation:
                    supervisor.overrides.publish(generation.region)
            said = {"backend": request["backend"], key: value or "as configured"}
            supervisor.log.event("backend order", services=list(dict.fromkeys(changed)), **said)
        services = list(dict.fromkeys(service for service, _name in found))
        return {"ok": True, "changed": bool(changed), "services": services}

    def _find(self, request):
        """Return [(service, backend's name there)]; raise Refused."""
        backend, service = request.get("backend"), request.get("service")
        services = self._supervisor.serving.config.services
        if service is not None and service not in [one.name for one in services]:
            raise Refused(f"there is no service {service!r} (there are {_some([one.name for one in services])})")
        wanted = [one for one in services if service in (None, one.name)]
        found = [(one.name, each.name) for one in wanted for each in one.backends if means(backend, each.name)]
        if not found:
            names = sorted({each.name for one in wanted for each in one.backends})
            raise Refused(f"there is no backend {backend!r} (there are {_some(names)})")
        return found

    # -- the others ------------------------------------------------------------------------------------------------

    def _log_level(self, request):
        level = request.get("level")
        if level is not None and (not isinstance(level, str) or level not in LEVELS):
            raise Refused(f"level is one of {', '.join(LEVELS)}, or null for the config's")
        before = self._supervisor.log.level
        self._supervisor.set_log_level(level)
        return {"ok": True, "changed": self._supervisor.log.level != before, "level": self._supervisor.log.level}

    def _sessions(self, client, request):
        """Ask the workers; the answer follows when they have answered, or when their time is over."""
        limit = request.get("limit", MOST_SESSIONS)
        if not _is_number(limit, MOST_SESSIONS):
            raise Refused(f"limit is a whole number from 1 to {MOST_SESSIONS}")
        question = {key: request.get(key) for key in ("service", "backend")}
        for key, name in question.items():
            if name is not None and not (isinstance(name, str) and len(name) <= MAX_NAME):
                raise Refused(f"{key} is the name of a {key}, or null for all")
        self._number += 1
        number = self._number
        told = self._supervisor.pool.tell({"sessions": number, "limit": limit, **question})
        waiting = {child.pid for child in told if child.role == "worker"}
        self._asked[number] = {"client": client, "waiting": waiting, "count": 0, "sessions": [], "limit": limit}
        self._supervisor.timers.add(self._supervisor.now() + SESSIONS_TIMEOUT, lambda: self._finish(number))
        self._finish_if_complete(number)

    def answered(self, child, message):
        """A worker has answered."""
        asked = self._asked.get(message["answer"])
        if asked is None or child.pid not in asked["waiting"]:
            return
        asked["waiting"].discard(child.pid)
        asked["count"] += message["count"]
        asked["sessions"] += message["sessions"]
        self._finish_if_complete(message["answer"])

    def gone(self, child):
        """A worker has ended and will not answer."""
        for number, asked in list(self._asked.items()):
            asked["waiting"].discard(child.pid)
            self._finish_if_complete(number)

    def _finish_if_complete(self, number):
        if number in self._asked and not self._asked[number]["waiting"]:
            self._finish(number)

    def _finish(self, number):
        asked = self._asked.pop(number, None)
        if asked is None:
            return
        oldest = sorted(asked["sessions"], key=lambda one: -one["duration"])[: asked["limit"]]
        reply = {"ok": True, "count": asked["count"], "sessions": oldest, "silent_workers": len(asked["waiting"])}
        _write(asked["client"], reply)


def _write(client, reply):
    client.write(json.dumps(reply).encode() + b"\n")
