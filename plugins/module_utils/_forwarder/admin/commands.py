# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of the admin socket: one JSON request per line, one JSON answer per line.

{"op": "status"}
{"op": "drain" | "maintenance" | "ready", "backend": NAME (without a port: all ports of that host), "service": NAME
   (absent: every service that has the backend)}. "ready" answers with "disabled", the services that disable the
   backend. If there are no others, the answer is an error of the "reason" "disabled", and "ready" has only removed what
   an operator has said before. Its key "agent" are the services in which the agent of the backend still keeps it out
{"op": "weight", "backend", "service", "weight": int or null (as configured)}
{"op": "sessions", "limit": int, SELECTORS}: the oldest sessions
{"op": "clients", "by": "sessions" | "bytes", "limit", SELECTORS}: the clients that have the most (top_clients.py)
{"op": "kill", SELECTORS, of which at least one is required}
{"op": "log_level", "level": NAME or null (as configured)}
{"op": "healthy" | "withdraw" | "rejoin", …}: see first_tier.py
{"op": "deny" | "allow" | "denied", …}: bans.py

SELECTORS are "generation": int, "service", "backend" and "client": ADDRESS or NETWORK; a session must match all.
The answers to "sessions", "clients" and "kill" have the key "in_kernel" if the kernel has connections of the selected
services: {service: [options with which conntrack(8) selects them]}.
An answer is {"ok": true, …} or {"ok": false, "error": sentence}. An override of a backend has effect at once, and the
answer comes when it is saved; if it cannot be, the answer has the key "not_saved", a sentence.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable
from itertools import chain
from typing import Protocol

from ..._shared.integers import is_whole
from ..backends.agent_word import keeps_out
from ..config.backend_names import disabled, matches
from ..config.config import Config
from ..config.defaults import MAX_NAME, WEIGHT
from ..counters import agent_state
from ..counters.overrides import Overrides
from ..counters.shared_memory import DISABLED
from ..loop.log import LEVELS, Log
from . import bans, first_tier, kernel_services, top_clients
from .protocols import at_once
from .snapshot import Snapshot
from .status import pieces, status

STATES = {"drain": "draining", "maintenance": "maintenance", "ready": None}
SESSIONS_TIMEOUT = 2.0  # seconds that workers have to answer
MAX_SESSIONS = 100  # of one worker, and of one answer
MAX_NAMES = 50  # in one sentence
SELECTORS = ("generation", "service", "backend", "client")  # of sessions
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

    def save(self, then: Callable[[str | None], object]) -> None:
        """Save the overrides; call ``then`` with None when they are, or else with the reason, one sentence."""

    def first_tier(self, backends: bool) -> first_tier.Facts:
        """Return what decides whether this proxy should get clients; ``backends``: they count, too."""

    def withdraw(self, reason: str) -> None:
        """Take this proxy out of the first tier."""

    def rejoin(self) -> None:
        """Undo withdraw()."""

    def set_log_level(self, level: str | None) -> None:
        """Set the level of all processes; None: as configured."""

    def ask_workers(self, question: dict, generation: int | None = None) -> set[int]:
        """Send a message to all workers, or those of a generation; return the pids of those that received it."""

    def generations(self) -> list[int]:
        """Return the numbers of the generations that have workers."""

    def end_generation(self, number: int) -> int | None:
        """End all sessions of an old generation; return how many they were, None if it is not an old one."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call ``callback`` after ``seconds``."""


class Refused(Exception):
    """A request that cannot be served; the message is one sentence. ``reason`` is for programs."""

    def __init__(self, message: str, reason: str | None = None):
        super().__init__(message)
        self.reason = reason


class Admin:
    """Answers the requests of admin clients."""

    def __init__(self, forwarder: Forwarder):
        self._forwarder = forwarder
        self._pending: dict[int, dict] = {}  # requests that wait for answers of workers, by number
        self._number = 0
        self._deferred = {  # commands that write their own answer
            "status": self._status,
            "sessions": self._sessions,
            "clients": self._clients,
            "kill": self._kill,
            "denied": bans.show(forwarder),
        }
        tier = first_tier.FirstTier(forwarder)
        overriding = {"withdraw": tier.withdraw, "rejoin": tier.rejoin}
        self._unconfigured = {"healthy": tier.healthy, **overriding}  # commands that need no config
        self._overriding = {"weight": self._weight, **dict.fromkeys(STATES, self._state), **overriding}
        self._overriding.update(bans.commands(forwarder, self._services, Refused))
        self._commands = {"log_level": self._log_level, **self._unconfigured, **self._overriding}

    def answer(self, client, line):
        """Answer one line of a client (connection.Connection), at once or later."""
        overrides = False
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise Refused("a request must be a JSON object")
            op = request.get("op") if isinstance(request.get("op"), str) else None
            if self._forwarder.config is None and op not in self._unconfigured:
                raise Refused(NOT_SERVING)
            if op in self._deferred:
                self._deferred[op](client, request)
                return
            if op not in self._commands:
                raise Refused(f"op must be one of {', '.join(sorted([*self._commands, *self._deferred]))}")
            overrides = op in self._overriding
            reply = self._commands[op](request)
        except Refused as error:
            reply = {"ok": False, "error": str(error), **({"reason": error.reason} if error.reason else {})}
        except first_tier.WrongRequest as error:
            overrides, reply = False, {"ok": False, "error": str(error)}
        except (ValueError, RecursionError):
            reply = {"ok": False, "error": "a request must be one JSON object on one line"}
        if overrides:
            self._forwarder.save(lambda error: _write(client, {**reply, "not_saved": error} if error else reply))
        else:
            _write(client, reply)

    def _status(self, client, _request):
        snapshot = self._forwarder.snapshot()
        if snapshot is None:
            raise Refused(NOT_SERVING)
        document = pieces(status(snapshot))
        client.write(at_once(chain(['{"ok": true, "status": '], document, ["}\n"])))

    # -- overrides of backends -------------------------------------------------------------------------------------

    def _state(self, request):
        answer = self._override(request, "state", STATES[request["op"]])
        if request["op"] != "ready":
            return answer
        found = self._find(request)
        on = [service for service, backend in found if not backend.disabled]
        off = sorted({service for service, backend in found if backend.disabled})
        if not on:
            raise Refused(disabled(request["backend"], off), DISABLED)
        held = self._kept_out_by_agents(found)
        if held:
            answer["agent"] = held
        if off:
            answer.update(services=list(dict.fromkeys(on)), disabled=off)
        return answer

    def _kept_out_by_agents(self, found):
        """Return the services in which these backends, of _find(), get no connections because their agent says so."""
        with_agent = {service.name for service in self._services(None) if service.health.agent}
        asked = [(service, backend.name) for service, backend in found if service in with_agent]
        snapshot = self._forwarder.snapshot() if asked else None
        if snapshot is None or not agent_state.in_region(snapshot.region):
            return []
        region, overrides = snapshot.region, snapshot.overrides
        return [
            service
            for service, name in asked
            if keeps_out(
                agent_state.read(region, min(region.targets_of[service, name].values())),
                overrides.of(service, name).get("weight", 0),
            )
        ]

    def _weight(self, request):
        weight = request.get("weight")
        if weight is not None and not is_whole(weight, 1, WEIGHT.high):
            raise Refused(f"weight must be a whole number from 1 to {WEIGHT.high}, or null for the configured one")
        kernel = self._in_kernel(request)
        if weight is not None and kernel:
            raise Refused(
                f"the kernel forwards {', '.join(kernel)}, so all proxies must have the same weights: change weight in"
                " l4proxy_services, and run the playbook trueip.l4proxy.site"
            )
        return self._override(request, "weight", weight)

    def _override(self, request, key, value):
        """Set an override of a backend; the answer says in which services, and whether anything changed."""
        forwarder = self._forwarder
        backends = self._find(request)
        changed = [service for service, one in backends if forwarder.overrides.set(service, one.name, key, value)]
        if changed:
            forwarder.publish_overrides()
            fields = {"backend": request["backend"], key: value or "as configured"}
            forwarder.log.event("backend override", services=list(dict.fromkeys(changed)), **fields)
        services = list(dict.fromkeys(service for service, _backend in backends))
        return {"ok": True, "changed": bool(changed), "services": services}

    def _in_kernel(self, selected):
        """Return {service: how conntrack(8) selects the connections} of those services that the kernel forwards."""
        config, name, backend = self._forwarder.config, selected.get("service"), selected.get("backend")
        found = {
            service.name: kernel_services.conntrack(service, backend, selected.get("client"))
            for service in (config.services if config else ())
            if service.in_kernel and name in (None, service.name)
        }
        return {service: options for service, options in found.items() if options}

    def _find(self, request):
        """Return [(name of a service, its config.Backend)] of a request; raise Refused."""
        backend, wanted = request.get("backend"), self._services(request.get("service"))
        found = [(each.name, one) for each in wanted for one in each.backends if matches(backend, one.name)]
        if not found:
            names = sorted({one.name for each in wanted for one in each.backends})
            raise Refused(f"there is no backend {backend!r} (there are {_listing(names)})")
        return found

    def _services(self, name):
        """Return [the service with this name], all for None; raise Refused."""
        config = self._forwarder.config
        services = config.services if config else ()
        names = [each.name for each in services]
        if name is not None and name not in names:
            raise Refused(f"there is no service {name!r} (there are {_listing(names)})")
        return [each for each in services if name in (None, each.name)]

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
        selected, generation, limit = self._selected(request), request.get("generation"), self._limit(request)
        number = self._next_number()
        question = {"number": number, "limit": limit, **selected}
        # "sessions" is the question that workers of version 0.1.0 know, but without a client.
        question = {"oldest": question} if "client" in selected else {"sessions": number, **question}
        self._collect(number, client, question, generation, selected=selected, limit=limit, answer=_oldest)

    def _clients(self, client, request):
        """Ask all workers for the clients that have the most; the answer is written like that to "sessions"."""
        selected, generation, limit = self._selected(request), request.get("generation"), self._limit(request)
        by = request.get("by", top_clients.SESSIONS)
        if by not in top_clients.BY:
            raise Refused(f"by must be one of {', '.join(top_clients.BY)}")
        number = self._next_number()
        question = {"clients": {"number": number, "by": by, **selected}}
        self._collect(number, client, question, generation, selected=selected, limit=limit, by=by, answer=_greatest)

    def _limit(self, request):
        limit = request.get("limit", MAX_SESSIONS)
        if not is_whole(limit, 1, MAX_SESSIONS):
            raise Refused(f"limit must be a whole number from 1 to {MAX_SESSIONS}")
        return limit

    def _next_number(self):
        self._number += 1
        return self._number

    def _collect(self, number, client, question, generation=None, **pending):
        """Send a question to workers and wait for their answers."""
        pids = self._forwarder.ask_workers(question, generation)
        self._pending[number] = {"client": client, "pids": pids, "count": 0, "sessions": [], **pending}
        self._forwarder.call_later(SESSIONS_TIMEOUT, lambda: self._finish(number))
        self._finish_if_complete(number)

    # -- ending sessions -------------------------------------------------------------------------------------------

    def _kill(self, client, request):
        """End sessions; the answer is written when all workers have ended theirs, or after SESSIONS_TIMEOUT."""
        selected, generation = self._selected(request), request.get("generation")
        if not selected and generation is None:
            raise Refused(f"select the sessions to end by at least one of {', '.join(SELECTORS)}")
        if not selected:
            ended = self._forwarder.end_generation(generation)
            if ended is not None:
                _write(client, {"ok": True, "ended": ended, "silent_workers": 0})
                return
        self._forwarder.log.event("kill", level="warning", generation=generation, **selected)
        number = self._next_number()
        question = {"kill": {"number": number, **selected}}
        self._collect(number, client, question, generation, selected=selected, answer=_ended)

    def _selected(self, request):
        """Return the SELECTORS that a request has, without the generation; raise Refused for a wrong one."""
        selected = {key: request[key] for key in SELECTORS if request.get(key) is not None}
        self._check(selected)
        selected.pop("generation", None)
        return selected

    def _check(self, selected):
        """Raise Refused if the value of a selector is wrong."""
        numbers = self._forwarder.generations()
        if "generation" in selected and selected["generation"] not in numbers:
            raise Refused(
                f"there is no generation {selected['generation']!r} with workers"
                f" (there are {_listing(list(map(str, numbers)))})"
            )
        for key in ("service", "backend"):
            name = selected.get(key)
            if name is not None and not (isinstance(name, str) and len(name) <= MAX_NAME):
                raise Refused(f"{key} must be the name of a {key}")
        try:
            network = selected.get("client", "::/0")
            ipaddress.ip_network(network if isinstance(network, str) else "")
        except ValueError as error:
            raise Refused(f"client must be an address or a network: {error}") from None

    # -- what the workers answer -----------------------------------------------------------------------------------

    def worker_answered(self, pid: int, message: dict):
        """Take the answer of a worker to a question."""
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
        try:
            if not pending["count"]:  # then the names must at least be in the config
                self._services(pending["selected"].get("service"))
                if "backend" in pending["selected"]:
                    self._find(pending["selected"])
            reply = {"ok": True, **pending["answer"](pending), "silent_workers": len(pending["pids"])}
            if kernel := self._in_kernel(pending["selected"]):
                reply["in_kernel"] = kernel
        except Refused as error:
            reply = {"ok": False, "error": str(error)}
        _write(pending["client"], reply)


def _ended(pending):
    return {"ended": pending["count"]}


def _oldest(pending):
    oldest = sorted(pending["sessions"], key=lambda session: -session["duration"])[: pending["limit"]]
    return {"count": pending["count"], "sessions": oldest}


def _greatest(pending):
    clients = top_clients.greatest(top_clients.added_up(pending["sessions"]), pending["by"], pending["limit"])
    return {"count": pending["count"], "clients": clients}


def _listing(names):
    """Return names for a sentence, at most MAX_NAMES of them."""
    more = [f"and {len(names) - MAX_NAMES} more"] if len(names) > MAX_NAMES else []
    return ", ".join([*names[:MAX_NAMES], *more])


def _write(client, reply):
    client.write(json.dumps(reply).encode() + b"\n")
