# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the admin commands and the metrics server may see and change of the supervisor (commands.Forwarder)."""

from __future__ import annotations

from collections.abc import Callable

from ..admin.snapshot import Snapshot
from ..counters.overrides import Overrides
from .children import CHECKER, WORKER
from .generation import Generations
from .log_settings import LogSettings
from .reload_results import ReloadResults
from .supervisor_loop import SupervisorLoop
from .worker_pool import WorkerPool


class Control:
    """The parts of the supervisor that admin clients reach."""

    def __init__(
        self,
        loop: SupervisorLoop,
        generations: Generations,
        pool: WorkerPool,
        overrides: Overrides,
        log_settings: LogSettings,
        results: ReloadResults,
    ):
        self.log = loop.log
        self.overrides = overrides
        self._loop = loop
        self._generations = generations
        self._pool = pool
        self._log_settings = log_settings
        self._results = results

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
            region=live.region,
            slots=live.slots,
            totals=self._generations.totals(),
            overrides=self.overrides,
            workers=self._pool.processes(WORKER),
            checker=checkers[0] if checkers else None,
            last_reload=self._results.last,
            reloads=self._results.counts,
            restarts=self._pool.restarts,
            log_level=self.log.level,
        )

    def publish_overrides(self):
        """Make the overrides known to all workers of the live generation and of one that is starting."""
        for generation in self._generations.current():
            self.overrides.publish(generation.region)

    def set_log_level(self, level: str | None):
        """Set the log level of all processes; None: as configured."""
        self._log_settings.set_level(level, self._generations.live)
        self._pool.send({"log_level": self.log.level})

    def call_later(self, seconds: float, callback: Callable[[], None]):
        """Call ``callback`` after ``seconds``."""
        self._loop.call_later(seconds, callback)

    def ask_workers(self, question: dict) -> set[int]:
        """Send a message to all workers; return the pids of those that received it."""
        return {child.pid for child in self._pool.send(question) if child.role == WORKER}
