# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What TCP and UDP need of the process that they run in."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Callable

from .log import Log, trace_lines
from .poller import Poller
from .timers import Timers


@dataclass(eq=False)
class EventLoop:
    """One per worker. The worker turns it; listeners and sessions register callbacks in it.

    A session can end alone. So where an exception comes out of a callback whose object has ``abort(reason)``, only that
    object is aborted; any other exception ends the process.
    """

    log: Log
    count: Callable[[str], None]  # adds one to a counter of this worker, one of shared_memory.WORKER_FIELDS
    own_addresses: frozenset[str] = frozenset()  # this host's, in text form; a changed set is a new object
    poller: Poller = field(default_factory=Poller)
    timers: Timers = field(default_factory=Timers)
    now: Callable[[], float] = time.monotonic

    def call(self, callback: Callable[[], None]) -> None:
        """Call ``callback``; contain what it raises."""
        try:
            callback()
        except Exception as error:  # noqa: BLE001
            self.contain(getattr(callback, "__self__", None), error)

    def contain(self, owner: object, error: Exception) -> None:
        """Log a defect and abort ``owner``, whose method raised ``error``; reraise if it has no abort()."""
        abort = getattr(owner, "abort", None)
        if abort is None:
            raise error
        self.count("defects")
        self.log.event("defect", level="error", error=repr(error), trace=trace_lines(error))
        abort(f"internal error: {error!r}")
