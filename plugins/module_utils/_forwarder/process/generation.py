# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A generation is one loaded config with the memory its processes share; each load makes the next one.

The *live* generation takes new connections. A *candidate* is one whose workers are not all ready yet; it becomes live
when they are, and the generation that was live *drains* until its last process has ended.
"""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ..._version import VERSION
from ..admin import runtime_file
from ..admin.listening import METRICS
from ..config import config as config_module
from ..config import defaults
from ..counters import shared_memory, totals
from ..counters.totals import GenerationTotals
from . import listeners
from .supervisor_loop import SupervisorLoop

CLOSING_TIME = 1.0  # seconds: the keeper needs 0.1 on an idle host, a handshake with a client the rest
LAST_GOOD = ".last-good"  # after the path of the config: the copy that the role makes once the forwarder serves it


class _Everything:
    def __contains__(self, _name: object) -> bool:
        return True


EVERYTHING = _Everything()  # tolerated at a start: what can be bound is served


class LoadError(Exception):
    """The config cannot be served; ``errors`` lists every reason."""

    def __init__(self, errors):
        super().__init__("; ".join(errors))
        self.errors = list(errors)


class OtherWorkers(Exception):
    """The config asks for another number of workers, one sentence."""


@dataclass
class Generation:
    """``number`` counts loads from 1. ``region`` is shared memory; it stays open until its counters are in the totals.

    ``new_listeners`` names the listening sockets that were bound for this generation; ``new_servers`` are the sockets
    bound for the admin and metrics servers, by name. ``failed`` are the listeners and servers that could not be bound
    when the forwarder started, {"PROTOCOL:ADDRESS:PORT", or the server's name: reason}.
    """

    number: int
    config: Any  # a config.Config; None if another version has written it and this one cannot read it
    config_file: dict  # {"path", "sha256"}, and "error" if it is the last good one: why the other cannot be loaded
    archive: dict | None  # {"path", "sha256"}
    slots: int  # number of workers
    region: shared_memory.Region
    version: str = VERSION
    loaded_at: str = ""
    new_listeners: list[str] = field(default_factory=list)
    new_servers: dict[str, socket.socket] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def description(self) -> dict:
        """Return what the runtime file says about the live generation."""
        return {
            "generation": self.number,
            "version": self.version,
            "config": self.config_file,
            "archive": self.archive,
            "loaded_at": self.loaded_at,
            "failed": self.failed,
        }

    @property
    def served(self) -> Any:
        """The config without the listeners that could not be bound: what the workers get."""
        return listeners.without(self.config, self.failed)

    def record(self) -> dict:
        """Return this generation as JSON for the next program."""
        document = config_module.dump(self.config) if self.config else None
        region = {"fd": self.region.fd, "record": self.region.record}
        return {"description": self.description(), "config": document, "slots": self.slots, "region": region}

    @classmethod
    def adopt(cls, record: dict) -> Generation:
        """Return the generation of a record() of the previous program."""
        description = record["description"]
        try:
            config = config_module.load(record["config"])
        except config_module.ConfigError:
            config = None
        return cls(
            number=description["generation"],
            config=config,
            config_file=description["config"],
            archive=description["archive"],
            slots=record["slots"],
            region=shared_memory.Region(record["region"]["record"], record["region"]["fd"]),
            version=description["version"],
            loaded_at=description["loaded_at"],
            failed=description.get("failed", {}),
        )

    def abandon(self, listening: dict[str, socket.socket]):
        """Close what was opened for a generation that will not become live."""
        for name in self.new_listeners:
            listening.pop(name).close()
        for sock in self.new_servers.values():
            sock.close()
        self.region.close()


def read_any(path) -> tuple[Any, dict]:
    """Return read(), or if that config cannot be loaded the last one that could (LAST_GOOD), with the key "error"."""
    try:
        return read(path)
    except LoadError as error:
        try:
            config, config_file = read(path + LAST_GOOD)
        except LoadError:
            raise error from None
        return config, {**config_file, "error": str(error)}


def read(path) -> tuple[Any, dict]:
    """Return (Config, {"path", "sha256"}) of a config file; raise LoadError."""
    try:
        with open(path, "rb") as stream:
            text = stream.read()
        return config_module.parse(text, path), {"path": path, "sha256": runtime_file.sha256(text)}
    except config_module.ConfigError as error:
        raise LoadError(error.errors) from None
    except OSError as error:
        raise LoadError([f"{path}: cannot be read: {error.strerror}"]) from None


def make(
    config, config_file, number, archive, listening, servers, alone=False, tolerated=(), workers=None
) -> Generation:
    """Return the generation of what read() returns; bind missing listeners and add them to ``listening``.

    ``servers`` are the admin.server.Servers. ``alone``: no other process of ours can be listening yet. A listener or a
    metrics socket that cannot be bound is an error, unless its name is in ``tolerated`` (EVERYTHING at a start); an
    admin socket never is. Raise LoadError, or OtherWorkers if there must be ``workers``; ``listening`` is unchanged
    then.
    """
    slots, limit = listeners.slots_of(config), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    too_many = listeners.beyond_limit(config, slots, limit)
    if too_many and not tolerated:
        raise LoadError([too_many])
    if workers not in (None, slots):  # a socket of a new slot would get connections as soon as it is bound
        raise OtherWorkers(f"the number of workers changes from {workers} to {slots}")
    bound, new_servers = {}, {}
    failed: dict[str, str] = {}
    try:
        bound = listeners.bind_missing(config, slots, listening, alone, failed if tolerated else None, limit)
        errors = _sentences(config, {name: reason for name, reason in failed.items() if name not in tolerated})
        new_servers, failures = servers.bind_missing(config)
        errors += [str(one) for one in failures if one.kind == METRICS and one.name not in tolerated]
        if not bound and not listening:  # another forwarder of ours, maybe: nothing to serve
            errors = errors or _sentences(config, failed)
        if errors:
            raise LoadError(errors)
        region = shared_memory.Region(shared_memory.describe(config, slots))
    except BaseException as error:
        for sock in (*bound.values(), *new_servers.values()):
            sock.close()
        if isinstance(error, listeners.ListenError):
            raise LoadError([error.strerror]) from None
        raise
    listening.update(bound)
    return Generation(
        number=number,
        config=config,
        config_file=config_file,
        archive=archive,
        slots=slots,
        region=region,
        new_listeners=list(bound),
        new_servers=new_servers,
        failed={**failed, **{one.name: one.reason for one in failures}},
    )


def _sentences(config, failed):
    """Return an error sentence for each listener of ``config`` in ``failed``, {name: reason}."""
    return [
        f"service {service}: cannot listen on {address}: {reason}"
        for service, of_service in listeners.failures(config, failed).items()
        for address, reason in of_service.items()
    ]


class Generations:
    """The live generation, the candidate, the shared memory of those that drain, and the totals of all."""

    def __init__(self):
        self.live: Any = None  # a Generation; None before the first one is live
        self.candidate: Generation | None = None
        self._draining: dict[int, shared_memory.Region] = {}  # by generation number
        self._left = 0  # number of the generation whose workers go on to the live one, see switch_in_place()
        self._moving: set[int] = set()  # slots of those that have not yet done so
        self._ended = GenerationTotals()

    @property
    def next_number(self) -> int:
        """The number of the generation that is loaded next."""
        return self.live.number + 1 if self.live else 1

    @property
    def stop_timeout(self) -> float:
        """Seconds that connections have after a stop."""
        timeouts = [generation.config.stop_timeout for generation in self.current() if generation.config]
        return max(timeouts, default=defaults.STOP_TIMEOUT)

    def current(self) -> list[Generation]:
        """Return the live generation and the candidate, as far as there are any."""
        return [generation for generation in (self.live, self.candidate) if generation]

    def regions(self) -> list[shared_memory.Region]:
        """Return the shared memory of all generations, the draining ones included."""
        return [*(generation.region for generation in self.current()), *self._draining.values()]

    def switch(self) -> Generation:
        """Make the candidate live, and return it; the generation that was live drains."""
        if self.live:
            self._draining[self.live.number] = self.live.region
        self.live, self.candidate = self.candidate, None
        return self.live

    def switch_in_place(self) -> Generation:
        """Make the candidate live for the workers of the live generation, which go on to it one by one.

        Until a worker says so, see switched(), the memory of the candidate has a copy of what it counts.
        """
        region = self.current()[-1].region
        totals.publish_elsewhere(region, self._draining.values())
        region.carry(self.live.region)
        self._left, self._moving = self.live.number, set(range(self.live.slots))
        return self.switch()

    def when_closable(self, loop: SupervisorLoop, use: Callable[[], object]):
        """Call ``use()``, which makes the candidate live, when its kernel services need no listeners any more.

        Their states are published already. When the keeper has told the kernel, no new handshake reaches the listeners
        that the live generation has for them; workers accept those that have begun. Meanwhile the candidate may fail.
        """
        live, candidate = self.live, self.candidate
        before = live.config.services if live and live.config else ()
        served = [service.name for service in before if not service.in_kernel]
        after = candidate.config.services if candidate else ()

        def use_later():
            if candidate is self.candidate:
                use()

        if any(service.in_kernel and service.name in served for service in after):
            loop.call_later(CLOSING_TIME, use_later)
        else:
            use()

    def switched(self, slot: int):
        """Note that the worker of a slot counts in the memory of the live generation."""
        self._moving.discard(slot)
        self._publish()

    def settled(self):
        """Note that all workers have switched, or that none will."""
        self._moving.clear()

    def region_of(self, number: int) -> shared_memory.Region | None:
        """Return the shared memory of a generation, None if it has ended."""
        for generation in self.current():
            if generation.number == number:
                return generation.region
        return self._draining.get(number)

    def others(self, generation: Generation) -> list[shared_memory.Region]:
        """Return the memory of all generations but this one."""
        current = [one.region for one in self.current() if one is not generation]
        return [*current, *self._draining.values()]

    def forget_sessions(self, numbers: Iterable[int], slot: int):
        """Set the gauges of a slot to 0 in the memory of these generations, because its worker has ended."""
        for region in filter(None, map(self.region_of, numbers)):
            region.reset_gauges(slot)

    def forget_all_but(self, counting: set[tuple[int, int]]):
        """Set the gauges of all slots to 0 but for those in ``counting``, (generation number, slot)."""
        for number, region in {self.live.number: self.live.region, **self._draining}.items():
            for slot in range(region.slots):
                if (number, slot) not in counting:
                    region.reset_gauges(slot)

    def totals(self) -> totals.Totals:
        """Return the counters of all generations, those that have ended included."""
        return self._ended.totals([self.live.region, *self._draining.values()])

    def account(self, is_needed: Callable[[int], object]):
        """Fold the counters of ended generations into the totals, and publish what the draining ones have open.

        ``is_needed`` takes the number of a generation and says whether a process counts in its memory. Limits of the
        current generations count what others have open.
        """
        if not self.live:
            return
        for number in [number for number in self._draining if not is_needed(number)]:
            region = self._draining.pop(number)
            self._ended.fold(region)
            region.close()
        self._publish()

    def _publish(self):
        others = self._draining.values()
        totals.publish_elsewhere(self.live.region, others, self._draining.get(self._left), self._moving)
        if self.candidate:
            totals.publish_elsewhere(self.candidate.region, [*others, self.live.region])

    def records(self) -> dict:
        """Return everything but the candidate as JSON for the next program."""
        draining = {number: {"fd": region.fd, "record": region.record} for number, region in self._draining.items()}
        return {"serving": self.live.record(), "draining": draining, "ledger": self._ended.records()}

    def continue_from(self, ended: GenerationTotals):
        """Count on from what an earlier forwarder has counted."""
        self._ended = ended

    def descriptors(self) -> list[int]:
        """Return the file descriptors that records() names."""
        return [self.live.region.fd, *(region.fd for region in self._draining.values())]

    def adopt(self, records: dict):
        """Take over the records() of the previous program; other keys are ignored."""
        self.live = Generation.adopt(records["serving"])
        self._draining = {
            int(number): shared_memory.Region(region["record"], region["fd"])
            for number, region in records["draining"].items()
        }
        self._ended = GenerationTotals(records["ledger"])
