# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Saves what operators say at once, and the counters every INTERVAL, to the state file (state_file.py).

A child process writes it: a slow disk must stop neither the supervisor nor a stop of the service. While it writes, the
supervisor serves admin clients and reloads, and what changes meanwhile is saved by the next child. A start reads the
file only if there is no handover of a running forwarder, which always knows more.
"""

from __future__ import annotations

import json
import os
import select
import selectors
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from ..admin import runtime_file
from ..counters import saved_counters
from ..counters.overrides import Overrides
from . import children, state_file
from .deny_lists import DenyLists
from .generation import Generation, Generations
from .old_generations import OldGenerations
from .reload_results import ReloadResults
from .supervisor_loop import SupervisorLoop
from .worker_pool import WorkerPool

INTERVAL = 30.0  # seconds between two saves of the counters, at least
BYTES_PER_DAY = 512 << 20  # that counters may write, for the sake of flash memory: 180 kB every 30 s
ANSWER_TIMEOUT = 5.0  # seconds that an operator waits for the disk
FINISH_TIMEOUT = 3.0  # seconds that a stop waits for it
HANGS = "the file system does not answer"
UNKNOWN = "the process that writes it has ended without a result"

Then = Callable[["str | None"], object]  # is called with None when all is saved, or else with the reason, one sentence


class Owner(Protocol):
    """What saving uses of the supervisor."""

    def inherited_descriptors(self) -> list[int]:
        """Return the file descriptors that a forked child must close."""


class Saver:
    """``error`` says why the last save failed, one sentence; None: it did not, or nothing is stored."""

    def __init__(
        self,
        loop: SupervisorLoop,
        generations: Generations,
        pool: WorkerPool,
        old: OldGenerations,
        overrides: Overrides,
        results: ReloadResults,
        listening: dict[str, socket.socket],
        owner: Owner,
        deny_lists: DenyLists,
    ):
        self.error: str | None = None
        self._loop = loop
        self._generations = generations
        self._overrides = overrides
        self._pool = pool
        self._old = old
        self._results = results
        self._listening = listening
        self._owner = owner
        self._deny_lists = deny_lists
        directory = state_file.directory(os.environ)
        self._path = os.path.join(directory, state_file.NAME) if directory else ""
        self._saved_at: str | None = None
        self._pipe: int | None = None  # from which the result of the child is read
        self._output = b""
        self._size = 0  # of the file, in bytes
        self._told: list[Then] = []  # of those that wait for the child
        self._next: list[Then] = []  # of those that wait for the child after it
        self._again = False  # whether there must be one

    def status(self) -> dict[str, str | None] | None:
        """Return what the status shows of the state file, None if nothing is stored."""
        return {"path": self._path, "saved_at": self._saved_at, "error": self.error} if self._path else None

    def descriptors(self) -> list[int]:
        """Return the file descriptor that is open while a child writes."""
        return [] if self._pipe is None else [self._pipe]

    # -- start -----------------------------------------------------------------------------------------------------

    def restore(self, generation: Generation):
        """Go on with what the state file has of the config of ``generation``, the first one of this forwarder."""
        log, config = self._loop.log, generation.config
        try:
            saved = state_file.read(self._path) if self._path else None
        except (state_file.Unusable, OSError) as error:
            reason = f"{self._path} {error if isinstance(error, state_file.Unusable) else error.strerror}"
            log.event("state not restored", level="error", reason=reason, kept_as=self._set_aside())
            return
        if saved is None:
            return
        self._overrides.adopt(saved["overrides"])
        self._overrides.settle(config)
        self._overrides.withdrawn = saved.get("withdrawn")
        restored = self._overrides.records()
        self._deny_lists.adopt(saved.get("denied", []))
        self._generations.continue_from(saved_counters.restore(saved["counters"], generation.region))
        self._pool.restarts, self._old.sessions_ended = saved["restarts"], saved["drain_memory_ended"]
        self._results.counts = {key: saved["reloads"][key] for key in ("ok", "failed")}
        forgotten = [record for record in saved["overrides"] if record not in restored]
        withdrawn = {"withdrawn": self._overrides.withdrawn} if self._overrides.withdrawn else {}
        log.event("state restored", written=saved["written"], overrides=restored, not_in_config=forgotten, **withdrawn)

    def _set_aside(self):
        try:
            return state_file.set_aside(self._path)
        except OSError:
            return None

    # -- saving ----------------------------------------------------------------------------------------------------

    def save_regularly(self):
        """Save the counters from now on."""
        if self._path:
            self._loop.call_later(INTERVAL, self._save_regularly)

    def _save_regularly(self):
        if self._pipe is not None:
            self._note(f"{self._path}: {HANGS}")
        self.save()
        self._loop.call_later(max(INTERVAL, self._size * 86400 / BYTES_PER_DAY), self._save_regularly)

    def save(self, then: Then | None = None):
        """Save everything; ``then`` is called when that is done, has failed, or takes longer than ANSWER_TIMEOUT."""
        if not self._path or self._generations.live is None:
            if then:
                then(None)
            return
        if then:
            self._loop.call_later(ANSWER_TIMEOUT, partial(self._overdue, then))
        if self._pipe is not None:
            self._again = True
            self._next += [then] if then else []
            return
        self._told += [then] if then else []
        self._begin()

    def finish(self, timeout: float = FINISH_TIMEOUT):
        """Save everything and wait up to ``timeout`` seconds, because the forwarder ends."""
        self.save()
        deadline = self._loop.now() + timeout
        while (pipe := self._pipe) is not None and self._loop.now() < deadline:
            if select.select([pipe], [], [], max(0.0, deadline - self._loop.now()))[0]:
                self._read(pipe)

    def _begin(self):
        self._output = b""
        try:
            pipe = children.spawn_writer(self._inherited(), self._write)
        except OSError as error:
            self._ended(f"no process can be started: {error.strerror}")
            return
        self._pipe = pipe
        self._loop.selector.register(pipe, selectors.EVENT_READ, partial(self._read, pipe))

    def _inherited(self):
        return [*self._owner.inherited_descriptors(), *(sock.fileno() for sock in self._listening.values())]

    def _write(self) -> bytes:
        """Write the file; return the result. This runs in the child."""
        try:
            return json.dumps({"size": state_file.write(self._document(), self._path)}).encode()
        except Exception as error:  # noqa: BLE001
            return json.dumps({"failure": getattr(error, "strerror", None) or repr(error)}).encode()

    def _document(self) -> dict[str, Any]:
        denied = self._deny_lists.records()
        return {
            **({"denied": denied} if denied else {}),
            "overrides": self._overrides.records(),
            "withdrawn": self._overrides.withdrawn,
            "restarts": self._pool.restarts,
            "reloads": self._results.counts,
            "drain_memory_ended": self._old.sessions_ended,
            "counters": saved_counters.dump(self._generations.totals(), self._generations.live.region),
        }

    def _read(self, pipe):
        data = os.read(pipe, 4096)
        self._output += data
        if not data:
            self._loop.selector.unregister(pipe)
            os.close(pipe)
            self._pipe = None
            result = json.loads(self._output or "{}")
            self._size = result.get("size", self._size)
            self._ended(None if "size" in result else result.get("failure", UNKNOWN))

    def _ended(self, failure):
        """Take the result of a child, and tell those that wait."""
        if failure is None:
            self._saved_at = runtime_file.timestamp()
        self._note(failure and f"{self._path}: {failure}")
        told, self._told, self._next = self._told, self._next, []
        again, self._again = self._again, False
        for then in told:
            then(self.error)
        if again:
            self._begin()

    def _note(self, error):
        """Log an error, or its end, once."""
        before, self.error = self.error, error
        if error and error != before:
            self._loop.log.event("state not saved", level="error", reason=error)
        elif before and not error:
            self._loop.log.event("state saved again")

    def _overdue(self, then):
        for waiting in (self._told, self._next):
            if then in waiting:
                waiting.remove(then)
                then(f"{self._path}: not written within {ANSWER_TIMEOUT:g} s; the forwarder goes on trying")
