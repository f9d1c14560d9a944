# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the keeper does for kernel services between its passes.

- When the forwarder publishes other states of backends, the table follows at once, without a pass; and conntrack
  forgets what is pinned to a backend that is down (service_connections). That is repeated a second later, because a
  connection may have begun while the table changed, and then every SWEEP seconds.
- It counts open connections, and publishes the counters (counters_file).
- It logs connections that have ended (session_log).

Each of these may use a bounded part of the CPU, so with very many connections they are done more seldom.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from ..._shared.paths import BACKEND_STATES, BANS
from ..datapath import counters
from ..document.documents import Document
from ..document.kernel_service import KernelService
from ..errors import RoutingError
from ..host import files
from ..host.backend_states import Reader, States
from ..netlink import conntrack_entries
from ..netlink.conntrack_entries import Entry
from ..reconcile import live_services
from ..reconcile.host import Host
from . import session_log
from .counters_file import CountersFile
from .file_watch import FileWatch
from .schedule import POLL
from .service_connections import ServiceConnections
from .session_log import SessionLog

# Seconds. States may change the table again after FOLLOW_SHARE times the CPU time of the last time, at least GAP.
# Events about the directory of the states are read as often.
GAP, FOLLOW_SHARE = 0.02, 4
# Conntrack is searched again AGAIN seconds after each change, and every SWEEP seconds, for servers that may have stale
# connections: 100,000 connections take 0.03 s for each of these.
AGAIN, SWEEP = 1.0, 60.0
# Counters are published every PUBLISH seconds. Counting open connections takes 0.6 s of CPU time for 100,000.
PUBLISH = 5.0
# What is wrong with the published states is logged at most every SAY seconds.
SAY = 10.0
# The file that says who is banned, beside that of the states.
BANNED = os.path.basename(BANS)
# How long to wait for a run that changes the host's routing, before a pass waits for it.
LOCK_WAIT = 0.05
# Each may use at most 1/SHARE of the CPU. One that fails is tried again after RETRY seconds.
SHARE, RETRY = 200, 1.0
# A count ends early if states change: it looks for that after so many connections, which take 10 ms.
LOOK_EVERY = 2000
# Where more servers may have stale connections, one list of all connections is cheaper.
MOST_LISTS = 20

log = logging.getLogger("l4proxy.keep")


class _StatesChanged(Exception):
    """A list is not read to its end."""


class KernelServices:
    """``monitor`` is a Monitor or has its interface; ``is_outdated`` returns whether the documents have changed since
    the last pass, ``cpu`` the CPU seconds of this process and its children.
    """

    def __init__(
        self,
        host: Host,
        monitor: Any,
        file: CountersFile,
        is_outdated: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = lambda: sum(os.times()[:4]),
        sessions: SessionLog | None = None,
    ):
        self._host, self._monitor, self._file, self._is_outdated = host, monitor, file, is_outdated
        self.restored = False
        self._clock, self._cpu = clock, cpu
        self._sessions = sessions or SessionLog()
        self._states = States()
        self._document: Document | None = None
        self._connections = ServiceConnections((), self._states)
        self._watch: FileWatch | None = None
        # Sentences that were logged: about the published states as they are, and others.
        self._said: set[str] = set()
        self._warned: set[str] = set()
        self._missing = (0, 0)
        # When each task is due; states are not read before ``_not_before``, events not before ``_look_at``.
        self._due: dict[Callable[[], None], float] = {}
        self._not_before = self._look_at = self._say_at = 0.0
        self._interrupted = False

    def follow(self, document: Document | None) -> None:
        """A pass has ended, and the table has the services of this document; None: there are no services."""
        before, self._document = self._document, document
        if document is None:
            if before:
                self.close()
            return
        now = self._clock()
        if self._watch is None:
            reader = self._host.backend_states
            self._watch = FileWatch(reader.path if isinstance(reader, Reader) else BACKEND_STATES, BANNED)
            self._file.load()
            self._due[self._look] = now
        # The pass may have read other states than those that are published now.
        self._due[self._update_states] = max(now, self._not_before)
        if before is None or before.services != document.services:
            self._connections = ServiceConnections(self._services, self._states)
            self._log_sessions()
            # All connections are looked at: the documents do not name backends that are gone.
            self._due.update({self._sweep: now + SWEEP, self._count: now, self._publish: now})

    @property
    def _services(self) -> tuple[KernelService, ...]:
        return self._document.services if self._document else ()

    def sleep(self, now: float) -> float:
        """Seconds until something is due; infinity without services."""
        return max(0.0, min(self._due.values(), default=float("inf")) - now)

    def tend(self, ready: Collection[int]) -> bool:
        """Do what is due, ``ready`` being descriptors that have become readable. Returns whether a pass is needed."""
        now = self._clock()
        if self._watch and self._watch.descriptor in ready:
            self._due[self._look] = max(now, self._look_at)
        if self._sessions.descriptor in ready:
            self._due.setdefault(self._write_sessions, now + session_log.INTERVAL)
        for task in [task for task, at in self._due.items() if at <= now]:
            self._due[task] = now + RETRY
            try:
                task()
            except RoutingError as error:
                self._warn(f"{error}; starting a pass")
                self._not_before = now + RETRY
                return True
            except OSError as error:
                self._warn(f"kernel services: {error}")
            except _StatesChanged:
                return False
        return False

    def finish(self) -> None:
        """Publish and save the last counts, because the keeper ends; the table stays."""
        if self._document:
            with contextlib.suppress(RoutingError, OSError):
                self._publish()
                self._file.save()

    def close(self) -> None:
        """Stop all this, because no services are left."""
        if self._watch:
            self._watch.close()
            self._watch = None
        self._sessions.close()
        self._file.remove()
        self._due.clear()
        self._said.clear()
        self._warned.clear()

    def _again(self, task: Callable[[], None], seconds: float, cost: float) -> None:
        self._due[task] = self._clock() + max(seconds, cost * SHARE)

    def _update_states(self) -> None:
        del self._due[self._update_states]
        cpu = self._cpu()
        began, states = self._clock(), self._host.backend_states()
        self._say(states)
        changed = self._apply()
        differences = _differences(self._services, self._states, states)
        if changed or differences:
            self._states, self._connections = states, ServiceConnections(self._services, states)
            news = ", ".join(differences) or "the table has the published states"
            log.info("backends of kernel services: %s (%.0f ms)", news, (self._clock() - began) * 1000)
            self._sweep()
            self._due[self._sweep] = self._clock() + AGAIN
        self._not_before = self._clock() + max(GAP, (self._cpu() - cpu) * FOLLOW_SHARE)
        until_end = self._host.bans().next_end - time.time()
        if until_end < float("inf"):
            self._due.setdefault(self._update_states, max(self._not_before, self._clock() + until_end))

    def restore(self) -> None:
        """Write the table at once if it is missing; ``restored`` tells the next pass, which counts the repair."""
        if self._document:
            with contextlib.suppress(RoutingError, OSError):  # the pass reports it
                self.restored = self._apply(missing=True) or self.restored

    def _apply(self, missing: bool = False) -> bool:
        """Bring the table, which must be there (or be missing), to the published states; returns whether it differed.

        RoutingError if that needs a pass.
        """
        if self._document is None:
            return False
        host = self._host
        with files.locked(host.lock, LOCK_WAIT):
            if self._is_outdated():
                raise RoutingError("the documents have changed")
            datapath = host.make_datapath(host.runner)
            live = datapath.read()
            if live.exists == missing:
                raise RoutingError(f"the nft table of kernel services is {'there' if missing else 'missing'}")
            changed = datapath.write(live, live_services.table(host, self._document))
        if changed:
            # The kernel's notification about this change needs no pass.
            self._monitor.expect(int.from_bytes(live.generation, "big") + 1)
        return bool(changed)

    def _look(self) -> None:
        """See whether the file of states has changed; without inotify, that is not known."""
        del self._due[self._look]
        watch, now = self._watch, self._clock()
        if watch is None:
            return
        if watch.descriptor is None:
            self._due[self._look] = now + POLL
        if watch.descriptor is None or watch.changed():
            self._due[self._update_states] = max(now, self._not_before)
        if watch.descriptor is not None:
            self._look_at = now + GAP
            self._monitor.attend(watch.descriptor)

    def _say(self, states: States) -> None:
        """Log what is wrong with the file, when that changes, but not all the time."""
        now = self._clock()
        if now < self._say_at:
            self._due.setdefault(self._update_states, self._say_at)
            return
        wrong = {*filter(None, (states.fault, self._host.bans().fault))}
        unknown = ", ".join(states.unknown(self._services))
        wrong |= {f"states of backends that no document has are ignored: {unknown}"} if unknown else set()
        for sentence in sorted(wrong - self._said):
            log.warning("%s", sentence)
        if wrong - self._said:
            self._say_at = now + SAY
        self._said = wrong

    def _sweep(self) -> None:
        """Make conntrack forget the connections that have become stale."""
        cpu, suspects = self._cpu(), self._connections.suspects
        if len(suspects) > MOST_LISTS:
            self._forget([entry for entry in conntrack_entries.listed() if self._connections.is_stale(entry)])
        for server in suspects if len(suspects) <= MOST_LISTS else ():
            self._forget([entry for entry in conntrack_entries.listed(server) if self._connections.is_stale(entry)])
        self._again(self._sweep, SWEEP, self._cpu() - cpu)

    def _count(self) -> None:
        cpu = self._cpu()
        opened, stale = self._connections.open(self._until_states_change(conntrack_entries.listed()))
        self._forget(stale)
        self._file.set_open(opened)
        self._again(self._count, PUBLISH, self._cpu() - cpu)

    def _until_states_change(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """The same entries. _StatesChanged when a file in the directory of the states changes, which is urgent; but
        not twice in a row.
        """
        interrupted, self._interrupted = self._interrupted, False
        watched = [self._watch.descriptor] if self._watch and self._watch.descriptor is not None else []
        for number, entry in enumerate(entries):
            if number % LOOK_EVERY == 0 and not interrupted and select.select(watched, [], [], 0)[0]:
                self._interrupted = True
                raise _StatesChanged
            yield entry

    def _forget(self, entries: list[Entry]) -> None:
        number = conntrack_entries.delete(entries) if entries else 0
        if number:
            names = Counter(service.name for service, _backend in map(self._connections.names_of, entries) if service)
            which = ", ".join(f"{count} of {name}" for name, count in sorted(names.items()))
            log.info("conntrack has forgotten connections whose backend does not serve: %s", which)

    def _publish(self) -> None:
        cpu = self._cpu()
        lost, dropped = (new - old for new, old in zip(self._sessions.missing, self._missing))
        if lost or dropped:
            self._missing = self._sessions.missing
            self._file.add_to_log(lost, dropped)
            log.warning(
                "connections of kernel services are missing in the log: events lost %d times, %d lines dropped",
                lost,
                dropped,
            )
        self._file.update(self._services, counters.readings())
        self._again(self._publish, PUBLISH, self._cpu() - cpu)

    def _log_sessions(self) -> None:
        try:
            self._sessions.follow(self._services, self._connections)
        except OSError as error:
            self._warn(f"connections of kernel services are not logged: {error}")
        if self._sessions.descriptor is not None:
            self._monitor.attend(self._sessions.descriptor)

    def _write_sessions(self) -> None:
        complete = self._sessions.write()
        del self._due[self._write_sessions]
        if self._sessions.descriptor is not None and complete:
            self._monitor.attend(self._sessions.descriptor)
        elif self._sessions.descriptor is not None:
            self._due[self._write_sessions] = self._clock() + GAP

    def _warn(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            log.warning("%s", sentence)


def _differences(services: Iterable[KernelService], before: States, after: States) -> list[str]:
    """``web/b down`` for each declared backend whose state has changed; other names may have been made up."""
    found = []
    for service in services:
        earlier = before.of_service(service)
        states = after.of_service(service).items()
        found += [f"{service.name}/{name} {state}" for name, state in states if state != earlier[name]]
    return list(dict.fromkeys(found))
