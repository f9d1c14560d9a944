# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of the forwarder at one moment: what the status document is made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..config.config import Config
from ..counters.overrides import Overrides
from ..counters.shared_memory import Region
from ..counters.totals import Totals
from .kernel_services import NO_NUMBERS, KernelNumbers


@dataclass(frozen=True)
class Process:
    """A worker or the checker. Times are monotonic seconds."""

    pid: int
    slot: int
    generation: int
    state: str  # starting, serving or draining
    started: float
    covers: list[int]  # slots that it serves besides its own
    silent: float | None  # seconds since its last heartbeat, or its start; None: it starts, or never writes one
    sessions: int  # open sessions


@dataclass(frozen=True)
class OldGeneration:
    """A generation whose workers drain. Version, archive and ``loaded_at`` are None if another version had it."""

    number: int
    version: str | None
    archive: dict[str, Any] | None
    loaded_at: str | None
    since: float  # monotonic seconds; when it began to drain
    workers: int
    sessions: int  # open sessions
    memory: int  # bytes; 0: not measured yet
    seconds_left: float | None  # until its sessions are ended; None: it has no deadline


@dataclass(frozen=True)
class Snapshot:
    """``description`` is that of the live generation in the runtime file; ``config`` is None if it is unreadable.

    ``region`` is the shared memory of the live generation, ``slots`` the number of its workers. ``workers`` are those
    of all generations.
    """

    now: float  # monotonic seconds
    description: dict[str, Any]
    config: Config | None
    region: Region
    slots: int
    totals: Totals
    overrides: Overrides
    workers: list[Process]
    checker: Process | None
    old_generations: list[OldGeneration]
    drain_memory_ended: int
    last_reload: dict[str, Any]
    reloads: dict[str, int]
    restarts: int
    log_level: str
    #: {service: {listener that could not be bound, as text: reason}}
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    kernel: KernelNumbers = NO_NUMBERS  # of the services that the kernel forwards
    denied: dict[str, Any] = field(default_factory=dict)  # deny_lists.DenyLists.status()
    #: {"healthy", "reason", "sentence" (first_tier.py), "withdrawn", "addresses"}
    first_tier: dict[str, Any] = field(default_factory=dict)
    state_file: dict[str, str | None] | None = None  # {"path", "saved_at", "error"}; None: nothing is stored
