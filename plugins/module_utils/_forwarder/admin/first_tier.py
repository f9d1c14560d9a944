# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this proxy should get clients: one decision for all first tiers (keepalived, BGP, load balancers).

{"op": "healthy", "service": NAME (absent: all), "need_backend": "none" | "any" | "each" (absent: as configured)}:
   {"ok": true, "healthy": bool, "reason": one of REASONS or null, "sentence": str}
{"op": "withdraw", "reason": TEXT (may be absent)}, {"op": "rejoin"}: {"ok": true, "changed": bool, "sentence": str}

A withdrawn proxy serves as before, and its first tier sends it no new clients. That is said last, so that a proxy which
is withdrawn and faulty counts as faulty: a first tier that withdraws it slowly must then hurry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..backends import flapping
from ..backends.agent_word import standing
from ..config.defaults import ANY, EACH, HEALTHY_NEEDS, NONE
from ..counters import agent_state, heartbeat, shared_memory
from ..counters.agent_state import AgentWord
from .snapshot import Process

REASONS = ("not_serving", "stopping", "worker", "checker", "local_delivery", "listeners", "backends", "withdrawn")
# Seconds without a heartbeat. An address has to leave within 2 s, and keepalived asks once a second.
BLOCKED = 0.75  # of a process that is stopped or sleeps: one that is well sleeps at most heartbeat.BEAT
MISSING = 1.35  # without a process, which a successor has normally replaced by then
LONGEST_REASON = 200  # characters
HEALTHY, UNHEALTHY = "this proxy should get clients", "this proxy should not get clients"
_SERVING = "serving"  # of a Process


class Verdict(NamedTuple):
    """``reason`` is one of REASONS, None if healthy; ``sentence`` is for people."""

    healthy: bool
    reason: str | None
    sentence: str


@dataclass(frozen=True)
class Facts:
    """What the verdict follows from; the live generation alone. ``config`` is None if this version cannot read it.

    ``beats`` are the seconds since the last heartbeat of each slot, and last of the checker; None: there was none yet.
    ``asleep`` are the pids of silent processes that neither use the CPU nor wait for it or a disk.
    """

    generation: int | None = None
    live_for: float = 0.0  # seconds
    stopping: bool = False
    config: Any = None
    workers: tuple[Process, ...] = ()
    slots: int = 0
    checker: Process | None = None
    beats: tuple[float | None, ...] = ()
    asleep: frozenset[int] = frozenset()
    broken_delivery: tuple[str, ...] = ()  # sentences
    failed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # as Snapshot.failed
    without_backend: frozenset[str] = frozenset()  # services that have no backend which is up
    withdrawn: Mapping[str, str] | None = None  # {"since", "reason"}


def asleep(processes: Iterable[Process]) -> frozenset[int]:
    """Return the pids of those that have been silent for BLOCKED and neither use the CPU nor wait for it or a disk."""
    silent = (one.pid for one in processes if (one.silent or 0.0) > BLOCKED)
    return frozenset(pid for pid in silent if heartbeat.process(pid)[0] not in "RD")


def needed(config, need: str | None = None) -> str:
    """Return which services need a backend: ``need``, or what the config says; one of HEALTHY_NEEDS."""
    return need or (config.healthy_needs if config else None) or NONE


def evaluate(facts: Facts, service: str | None = None, need: str | None = None) -> Verdict:
    """Return whether this proxy should get clients, of one service or of all, and the first reason why not."""
    for reason, sentence in _faults(facts, service, need):
        if sentence:
            return Verdict(False, reason, f"{UNHEALTHY}: {sentence}")
    return Verdict(True, None, HEALTHY)


def _faults(facts, service, need):
    """Yield (reason, sentence or None) in the order of REASONS."""
    yield "not_serving", "it serves no config yet" if facts.generation is None else None
    yield "stopping", "the forwarder stops" if facts.stopping else None
    yield "worker", next(_hung_workers(facts), None)
    yield "checker", _silence(facts, facts.checker, facts.slots, "the health checker")
    yield "local_delivery", next(iter(facts.broken_delivery), None)
    yield "listeners", _not_listening(facts, service)
    yield "backends", _missing_backends(facts, service, need)
    if facts.withdrawn is not None:
        because = facts.withdrawn.get("reason")
        yield "withdrawn", f"an operator has withdrawn it ({because})" if because else "an operator has withdrawn it"


def _hung_workers(facts):
    """Yield a sentence for each slot whose clients wait."""
    serving = {process.slot: process for process in facts.workers if process.state == _SERVING}
    sentences = {slot: _silence(facts, serving.get(slot), slot, f"worker {slot}") for slot in range(facts.slots)}
    covered = {number for slot, process in serving.items() if not sentences.get(slot) for number in process.covers}
    for slot, sentence in sentences.items():
        if sentence and (slot in serving or slot not in covered):
            yield sentence


def _silence(facts, process, place, name):
    """Return a sentence if the process at a place of ``beats`` is silent for too long, or is missing for that long."""
    if process is not None:
        silent = process.silent or 0.0
        limit = BLOCKED if process.pid in facts.asleep else heartbeat.SUSPECT
        return f"{name} does not beat since {silent:.1f} s" if silent > limit else None
    beat = facts.beats[place] if place < len(facts.beats) else None
    silent = facts.live_for if beat is None else min(beat, facts.live_for)
    return f"{name} is missing since {silent:.1f} s" if silent > MISSING else None


def _not_listening(facts, service):
    """Return a sentence if the ``service`` that is asked for listens nowhere."""
    for one in facts.config.services if facts.config and service else ():
        if one.name == service and one.listen and len(facts.failed.get(service, ())) == len(one.listen):
            return f"service {service} cannot listen on any of its addresses"
    return None


def _missing_backends(facts, service, need):
    config = facts.config
    names = [one.name for one in config.services if service in (None, one.name)] if config else []
    need = needed(config, need)
    missing = [name for name in names if name in facts.without_backend]
    if need == EACH and missing:
        return f"service {missing[0]} has no backend that is up"
    if need == ANY and missing and len(missing) == len(names):
        return f"service {service} has no backend that is up" if service else "no service has a backend that is up"
    return None


def without_backend(config, region, overrides, now) -> frozenset[str]:
    """Return the names of the services that have no backend which would get a new client."""

    def serves(service, backend):
        override = overrides.of(service.name, backend.name)
        numbers = list(region.targets_of[service.name, backend.name].values())
        if backend.disabled or override.get("state"):
            return False
        asked = service.health.agent and agent_state.in_region(region)
        word = agent_state.read(region, numbers[0]) if asked else AgentWord()
        return any(
            _up(region, number, service, now)
            and standing(word, shared_memory.READY, shared_memory.UP, 1, override.get("weight", 0)).state == "up"
            for number in numbers
        )

    found = (one.name for one in config.services if not any(serves(one, backend) for backend in one.backends))
    return frozenset(found)


def _up(region, number, service, now):
    """Whether a target is up; without health checks it always is."""
    if not service.checked:
        return True
    flaps = flapping.of_target(region, number, service.health)
    return region.state("health", number) == shared_memory.UP and not (flaps and flaps.back_at > now)


class WrongRequest(Exception):
    """The message is one sentence."""


class FirstTier:
    """Answers the requests about the first tier; ``forwarder`` is a commands.Forwarder."""

    def __init__(self, forwarder):
        self._forwarder = forwarder

    def healthy(self, request) -> dict:
        """Answer the op ``healthy``; raise WrongRequest for a wrong request."""
        config, service, need = self._forwarder.config, request.get("service"), request.get("need_backend")
        if need not in (None, *HEALTHY_NEEDS):
            raise WrongRequest(f"need_backend must be one of {', '.join(HEALTHY_NEEDS)}")
        if service is not None and config and service not in [one.name for one in config.services]:
            raise WrongRequest(f"there is no service {service!r}")
        return {"ok": True, **self.verdict(service, need)._asdict()}

    def verdict(self, service=None, need=None) -> Verdict:
        """Return whether this proxy should get clients; see evaluate()."""
        facts = self._forwarder.first_tier(needed(self._forwarder.config, need) != NONE)
        return evaluate(facts, service, need)

    def withdraw(self, request) -> dict:
        """Answer the op ``withdraw``; raise WrongRequest for a wrong request."""
        reason = request.get("reason", "")
        if not isinstance(reason, str) or len(reason) > LONGEST_REASON or not reason.isprintable():
            raise WrongRequest(f"reason must be one line of at most {LONGEST_REASON} characters")
        before = self._forwarder.overrides.withdrawn
        if before is not None and reason in ("", before["reason"]):
            return {"ok": True, "changed": False, "sentence": "this proxy is withdrawn already"}
        self._forwarder.withdraw(reason)
        return {
            "ok": True,
            "changed": True,
            "sentence": "this proxy is withdrawn: it goes on serving",
        }

    def rejoin(self, _request) -> dict:
        """Answer the op ``rejoin``."""
        changed = self._forwarder.overrides.withdrawn is not None
        if changed:
            self._forwarder.rejoin()
        return {"ok": True, "changed": changed, "sentence": self.verdict().sentence}
