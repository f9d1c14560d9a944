# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the admin commands and the metrics server may see and change of the supervisor (commands.Forwarder)."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..._shared import promise
from ..admin import first_tier, kernel_services, listening, runtime_file
from ..admin.snapshot import Snapshot
from ..backends.health_state import LOCAL_DELIVERY
from ..counters.overrides import Overrides
from ..counters.shared_memory import EPOCH_ADMIN, EPOCH_HEALTH
from . import listeners
from .children import CHECKER, WORKER, publish_states
from .deny_lists import DenyLists
from .generation import Generations
from .local_delivery import LocalDelivery
from .log_settings import LogSettings
from .old_generations import OldGenerations
from .reload_results import ReloadResults
from .saver import Saver, Then
from .supervisor_loop import SupervisorLoop
from .virtual_addresses import VirtualAddresses
from .worker_pool import WorkerPool


class Control:
    """The parts of the supervisor that admin clients reach."""

    def __init__(
        self,
        loop: SupervisorLoop,
        generations: Generations,
        pool: WorkerPool,
        old: OldGenerations,
        overrides: Overrides,
        results: ReloadResults,
        log_settings: LogSettings,
        saver: Saver,
        deny_lists: DenyLists,
    ):
        self.log = loop.log
        self.overrides = overrides
        self.deny_lists = deny_lists
        self._loop = loop
        self._generations = generations
        self._pool = pool
        self._old = old
        self._log_settings = log_settings
        self._results = results
        self._saver = saver
        self._delivery = LocalDelivery(loop, self._serving)
        self._addresses = VirtualAddresses(loop, self._serving)
        self._answers = False
        self._live = (0, 0.0)  # number of the live generation, and when it was first seen
        self._served: tuple[object, frozenset[str]] = (
            None,
            frozenset(),
        )  # epochs, services without backend

    @property
    def config(self):
        """The config that is served, None if there is none yet or this version cannot read it."""
        live = self._generations.live
        return live.config if live else None

    def snapshot(self) -> Snapshot | None:
        """Return the present state, None before the first config is served."""
        live = self._generations.live
        if live is None:
            return None
        checkers = [process for process in self._pool.processes(CHECKER) if process.generation == live.number]
        return Snapshot(
            now=self._loop.now(),
            description=live.description(),
            config=live.config,
            failed=listeners.failures(live.config, live.failed) if live.config else {},
            region=live.region,
            slots=live.slots,
            totals=self._generations.totals(),
            overrides=self.overrides,
            workers=self._pool.processes(WORKER),
            checker=checkers[0] if checkers else None,
            old_generations=self._old.entries(),
            drain_memory_ended=self._old.sessions_ended,
            last_reload=self._results.last,
            reloads=self._results.counts,
            restarts=self._pool.restarts,
            log_level=self.log.level,
            state_file=self._saver.status(),
            kernel=self._kernel_numbers(live.config),
            denied=self.deny_lists.status(),
            first_tier=self._first_tier_status(),
        )

    @staticmethod
    def _kernel_numbers(config):
        has_any = config and any(service.in_kernel for service in config.services)
        return kernel_services.read() if has_any else kernel_services.NO_NUMBERS

    def first_tier(self, backends: bool) -> first_tier.Facts:
        """Return what decides whether this proxy should get clients; ``backends``: they count, too."""
        live, now, stopping = self._generations.live, self._loop.now(), self._pool.stopping
        if not self._answers:  # what the program before has promised ends with the first answer
            self._answers = True
            for path in self._admin_sockets():
                runtime_file.remove(path + promise.SUFFIX)
        if live is None:
            return first_tier.Facts(stopping=stopping, withdrawn=self.overrides.withdrawn)
        if self._live[0] != live.number:
            self._live = (live.number, now)
        since = max(self._live[1], self._pool.heartbeats.since(now))

        def processes(role):
            return [one for one in self._pool.processes(role) if one.generation == live.number]

        # The heartbeats are read again below: on a busy host, a process may beat and sleep after the first reading.
        asleep = first_tier.asleep([*processes(WORKER), *processes(CHECKER)])
        checkers = processes(CHECKER)
        beats = (live.region.beat(place) for place in range(live.slots + 1))
        return first_tier.Facts(
            generation=live.number,
            live_for=now - since,
            stopping=stopping,
            config=live.config,
            workers=tuple(processes(WORKER)),
            slots=live.slots,
            checker=checkers[0] if checkers else None,
            beats=tuple(None if beat is None else now - beat for beat in beats),
            asleep=asleep,
            broken_delivery=(*self._delivery.faults(), *self._all_broken(live.region)),
            failed=listeners.failures(live.config, live.failed) if live.config else {},
            without_backend=self._without_backend(live, now) if backends else frozenset(),
            withdrawn=self.overrides.withdrawn,
        )

    def _first_tier_status(self):
        verdict = first_tier.FirstTier(self).verdict()
        return {**verdict._asdict(), "withdrawn": self.overrides.withdrawn, "addresses": self._addresses.look()}

    def _serving(self):
        live = self._generations.live
        return (live.number, live.config) if live else (0, None)

    @staticmethod
    def _all_broken(region):
        """Return a sentence if health checks find every return path of all families broken."""
        broken = set(region.common_causes())
        every = broken and broken >= {family for _service, _backend, family in region.targets}
        return [LOCAL_DELIVERY] if every else []

    def promise(self):
        """Let this verdict hold for askers that get no answer, for the seconds that the next program needs to start."""
        if not (self.config and first_tier.FirstTier(self).verdict().healthy):
            return
        for path in self._admin_sockets():
            try:
                with open(path + promise.SUFFIX, "w", encoding="ascii") as stream:
                    os.fchmod(stream.fileno(), 0o644)
                    stream.write(str(self._loop.now() + promise.LONGEST))
            except OSError as error:
                self.log.event("no promise", level="warning", path=path, reason=error.strerror)

    def _admin_sockets(self):
        return [path for path in map(listening.path_of, listening.names(self.config)) if path] if self.config else []

    def descriptors(self) -> list[int]:
        """Return the file descriptors that forked children must close."""
        return self._delivery.descriptors()

    def _without_backend(self, live, now):
        """Return the services without a backend that is up; look anew only if a state has changed."""
        epochs = (live.number, *(live.region.cells[cell] for cell in (EPOCH_HEALTH, EPOCH_ADMIN)))
        if live.config and self._served[0] != epochs:
            found = first_tier.without_backend(live.config, live.region, self.overrides, now)
            self._served = (epochs, found)
        return self._served[1]

    def withdraw(self, reason: str):
        """Take this proxy out of the first tier."""
        self.overrides.withdrawn = {"since": runtime_file.timestamp(), "reason": reason}
        self.log.event("withdrawn", reason=reason)

    def rejoin(self):
        """Undo withdraw()."""
        self.overrides.withdrawn = None
        self.log.event("rejoined")

    def publish_overrides(self):
        """Make the overrides known to all workers, also to those that drain: one may still try another backend."""
        for region in self._generations.regions():
            self.overrides.publish(region)
        live = self._generations.live
        checkers = [child for child in self._pool.of(live.number) if child.role == CHECKER]
        # The checker tells the keeper. While there is none, nobody else can change the state of a backend.
        if not any(child.channel.send({"overrides": True}) for child in checkers) and live.config:
            publish_states(live, self.log, self._loop.now())

    def save(self, then: Then):
        """Save the overrides; call ``then`` with None when they are, or else with the reason, one sentence."""
        self._saver.save(then)

    def set_log_level(self, level: str | None):
        """Set the log level of all processes; None: as configured."""
        self._log_settings.set_level(level, self._generations.live)
        self._pool.send({"log_level": self.log.level})

    def call_later(self, seconds: float, callback: Callable[[], None]):
        """Call ``callback`` after ``seconds``."""
        self._loop.call_later(seconds, callback)

    def ask_workers(self, question: dict, generation: int | None = None) -> set[int]:
        """Send a message to all workers, or those of a generation; return the pids of those that received it."""
        return {child.pid for child in self._pool.send(question, generation) if child.role == WORKER}

    def generations(self) -> list[int]:
        """Return the numbers of the generations that have workers."""
        return sorted({child.generation for child in self._pool.children.values() if child.role == WORKER})

    def end_generation(self, number: int) -> int | None:
        """End all sessions of an old generation; return how many they were, None if it is not an old one."""
        return self._old.end(number, "killed by an operator")
