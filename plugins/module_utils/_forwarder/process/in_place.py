# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisor's side of a config taken in place: all workers of the live generation become those of the next one.

1. Prepare: every worker gets the config, the memory and the new listening sockets of the candidate, makes what it
   needs, and answers. If one refuses, dies or does not answer in time, all discard it, and the reload goes on with new
   processes: nothing has changed.
2. Use: every worker switches. From here on the candidate is live. A worker that fails to switch drains and is replaced;
   one that dies is replaced as usual. When all have answered, the listeners that left the config are closed.

A worker counts the sessions that the new config does not have any more in the memory of the older generation, which it
*holds* until these have ended (Child.holds). The messages are in change_messages.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Protocol

from . import change_messages
from .channel import TooLarge
from .children import Child
from .generation import Generation, Generations
from .log_settings import LogSettings
from .supervisor_loop import SupervisorLoop
from .worker_pool import WorkerPool

TIMEOUT = 5.0  # seconds for all workers to prepare, and then to use
LATEST_USE = 4.0  # seconds after which a worker does not begin to use it: soon it is replaced


class Owner(Protocol):
    """What a change uses of the supervisor."""

    def changed_in_place(self) -> None:
        """Called when the candidate is live and all workers use it."""

    def not_changed_in_place(self, reason: str) -> None:
        """Called when a worker cannot take the candidate: the reload needs new processes."""


def obstacle(live: Generation, pool: WorkerPool, archive: dict | None, installed: dict | None) -> str | None:
    """Return why a config cannot be taken in place by the workers of ``live``, one sentence; None if it can.

    ``archive`` is the one that this process runs, ``installed`` the one on disk.
    """
    if _sha256(installed) != _sha256(archive):
        return "another archive is installed"
    if _sha256(live.archive) != _sha256(archive):
        return "the workers run another archive"
    if live.config is None:
        return "this version cannot read the config that another version has loaded"
    if not pool.complete(live):
        return "a worker is being replaced"
    return None


def _sha256(archive):
    return archive["sha256"] if archive else None


class ChangeInPlace:
    """The change in progress, if there is one."""

    def __init__(
        self,
        loop: SupervisorLoop,
        generations: Generations,
        pool: WorkerPool,
        log_settings: LogSettings,
        owner: Owner,
    ):
        self._loop = loop
        self._generations = generations
        self._pool = pool
        self._log_settings = log_settings
        self._owner = owner
        self._number = 0  # of the generation that the workers prepare or use; 0: no change is in progress
        self._waiting: dict[int, Child] = {}  # by pid: workers that have to answer
        self._parts: dict[int, Iterator[tuple[dict, list[int]]]] = {}  # by pid: what is still to be sent
        self._watched = 0  # counts the phases, so that the timer of an earlier one does nothing

    def __bool__(self):
        return bool(self._number)

    @property
    def _preparing(self):
        candidate = self._generations.candidate
        return bool(candidate and candidate.number == self._number)

    def begin(self, candidate: Generation, listening: dict):
        """Make all workers of the live generation prepare the candidate; raise OSError before any is asked."""
        document = change_messages.document(candidate.served, candidate.region)
        new = {name: listening[name] for name in candidate.new_listeners}
        workers = list(self._pool.serving(self._generations.live).values())
        self._number = candidate.number
        self._waiting = {child.pid: child for child in workers}
        for child in workers:
            self._parts[child.pid] = change_messages.parts(candidate.number, document, candidate.region.fd, new)
        self._watch()
        self._loop.log.event("change in place", generation=candidate.number, workers=list(self._waiting))
        for child in workers:
            if self._number:  # not given up meanwhile
                self._send_part(child)
        os.close(document)

    def answered(self, child: Child, message: dict):
        """Act on an answer of a worker."""
        if child.pid not in self._waiting or self._number not in message.values():
            return
        if self._preparing and "received" in message:
            self._send_part(child)
        elif self._preparing and "prepared" in message:
            if "refused" in message:
                self._give_up(f"worker {child.slot}: {message['refused']}")
            else:
                self._prepared(child)
        elif not self._preparing and "using" in message:
            if "refused" in message:
                self._replace(child, message["refused"])
            self._used(child)

    def child_ended(self, child: Child):
        """Note the end of a worker. Once the candidate is live, it is replaced like any other."""
        if child.pid not in self._waiting:
            return
        if self._preparing:
            self._give_up(f"worker {child.slot} ended")
        else:
            self._used(child)

    def cancel(self) -> bool:
        """Stop the change, because the forwarder stops; return whether the candidate has not become live."""
        preparing = self._preparing
        if preparing:
            self._discard()
        self._end()
        return preparing

    # -- prepare ---------------------------------------------------------------------------------------------------

    def _send_part(self, child):
        message, descriptors = next(self._parts[child.pid])
        try:
            sent = child.channel.send(message, descriptors)
        except TooLarge as error:
            self._give_up(str(error))
            return
        if not sent:
            self._give_up(f"worker {child.slot} cannot be sent the new config (it has ended, or its queue is full)")

    def _prepared(self, child):
        del self._waiting[child.pid]
        if not self._waiting:
            self._generations.when_closable(self._loop, self._use)

    def _give_up(self, reason):
        self._discard()
        self._end()
        self._owner.not_changed_in_place(reason)

    def _discard(self):
        for child in self._pool.serving(self._generations.live).values():
            child.channel.send({"discard": self._number})

    # -- use -------------------------------------------------------------------------------------------------------

    def _use(self):
        """Make the candidate live: from here on there is no way back."""
        workers = list(self._pool.serving(self._generations.live).values())
        live = self._generations.switch_in_place()
        level = self._log_settings.of(live)["level"]
        self._waiting = {child.pid: child for child in workers}
        self._watch()
        for child in workers:
            child.holds.add(child.generation)
            child.generation = live.number
        use = {"use": live.number, "until": self._loop.now() + LATEST_USE, "log_level": level}
        for child in workers:
            if not child.channel.send(use):
                self._replace(child, "it has ended, or its queue is full")
                self._used(child)

    def _used(self, child):
        del self._waiting[child.pid]
        self._generations.switched(child.slot)
        if not self._waiting:
            self._end()
            self._owner.changed_in_place()

    def _replace(self, child, reason):
        """Let a worker that could not switch drain; another one takes its slot."""
        self._loop.log.event("worker not changed", level="error", worker=child.pid, slot=child.slot, reason=reason)
        child.generation = max(child.holds)
        child.holds.discard(child.generation)
        self._pool.drain_and_replace(child, self._generations.live.config.drain_timeout)

    # -- time and end ----------------------------------------------------------------------------------------------

    def _watch(self):
        """Start the time that the workers have for this phase."""
        self._watched += 1
        self._loop.call_later(TIMEOUT, partial(self._overdue, self._watched))

    def _overdue(self, watched):
        if watched != self._watched or not self._waiting:
            return
        slots = ", ".join(str(child.slot) for child in self._waiting.values())
        reason = f"no answer within {TIMEOUT:g} s from worker {slots}"
        if self._preparing:
            self._give_up(reason)
            return
        for child in list(self._waiting.values()):
            self._replace(child, reason)
            self._used(child)

    def _end(self):
        self._number = 0
        self._watched += 1
        self._waiting.clear()
        self._parts.clear()
        self._generations.settled()
