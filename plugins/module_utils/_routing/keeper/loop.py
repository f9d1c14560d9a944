# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``l4proxy keep``: hold the host to its documents, from boot on and whatever takes away what they say.

At boot links, addresses and proxies appear in any order, so what is not there yet is waited for. Afterwards the
kernel's news (``watch``) tell when to look again; each look (``look``) reads the documents anew, compares and repairs.
How often is ``pace``'s business; what is told to people is ``record``'s.

A service of Type=notify with a status line, started before the network: what needs no link is in place before the first
packet comes, and is ready then, so at boot nobody waits for what is missing. It ends by SIGTERM and leaves all in
place. SIGHUP makes it look at everything now.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TextIO

from ..document import store
from ..document.documents import Document
from ..host.mac_cache import NAME as MACS
from ..host.mac_cache import Macs
from ..reconcile.engine import Host
from . import attribution, fingerprint
from .monitor import News, Watch
from .notify import notify
from .reconcile_pass import Documents, Look, look, settings_differ
from .schedule import Pace
from .state_file import NAME, Record, Repair

EXIT_DONE, EXIT_FAILED, EXIT_DRIFT = 0, 1, 2
# Seconds to wait for a proxy's MAC within a look: the answer is news, and others must not wait for it.
NEIGHBOUR_WAIT = 0.03
# How often systemd is told that all is well, in seconds: the unit's WatchdogSec is six times that.
ALIVE = 30.0
# From so many repairs undone in a row on, it is a fight, and the log says so.
FIGHT = 3

log = logging.getLogger("l4proxy.keep")


def run(
    directory: str = store.DIRECTORY,
    once: bool = False,
    dry_run: bool = False,
    host: Host | None = None,
    out: TextIO | None = None,
    environ: Mapping[str, str] | None = None,
) -> int:
    """Keep the documents of a directory until SIGTERM; 0 then.

    ``once`` makes one pass only: 0 when all is applied, 1 when something is missing or wrong. ``dry_run`` changes
    nothing, writes the difference to ``out`` and returns 2 when there is one.
    """
    environ = os.environ if environ is None else environ
    host, documents = host or Host(), Documents(directory)
    state = _directory(environ, "STATE_DIRECTORY")
    if state:
        host = replace(host, macs=Macs(os.path.join(state, MACS)))
    if dry_run:
        return _show(documents, host, out or sys.stdout)
    if once:
        return _once(documents, host)
    runtime = _directory(environ, "RUNTIME_DIRECTORY")
    record = Record(os.path.join(runtime, NAME) if runtime else None)
    record.load()
    with _signals() as (wake, received):
        watch = Watch(wake)
        try:
            host = replace(host, neighbour_wait=NEIGHBOUR_WAIT)
            Keeper(documents, host, watch, record, lambda text: notify(text, environ)).run(received)
        finally:
            watch.close()
    return EXIT_DONE


def _directory(environ: Mapping[str, str], name: str) -> str:
    """A directory that systemd made for the service; without one somebody tries it by hand, beside it perhaps."""
    return environ.get(name, "").split(":")[0]


@contextmanager
def _signals() -> Iterator[tuple[int, list[int]]]:
    """A descriptor that can be read once a signal has come, and the list to which SIGTERM, SIGINT and SIGHUP go."""
    received: list[int] = []
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handlers = {
        number: signal.signal(number, lambda caught, _frame: received.append(caught))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        yield reader, received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


class Keeper:
    """The loop. ``watch`` is a Watch or has what it has; ``tell`` sends a line to systemd.

    ``clock`` and ``cpu`` are seconds of monotonic time and of CPU, children included; ``digest`` is ``glance``'s.
    """

    def __init__(
        self,
        documents: Documents,
        host: Host,
        watch: Any,
        record: Record,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = lambda: sum(os.times()[:4]),
        digest: Callable[[Look, Host], bytes | None] = fingerprint.digest,
    ):
        self._documents, self._host, self._watch, self._record = documents, host, watch, record
        self._tell, self._clock, self._cpu, self._digest = tell, clock, cpu, digest
        self._pace = Pace(clock())
        self._found = Look()
        self._signs: tuple[bytes, ...] | None = None
        # Digests: with which a look found nothing to do, and of just now.
        self._known: bytes | None = None
        self._seen: bytes | None = None
        self._alive_at = clock()
        self._applied: dict[str, Document] = {}
        self._at_start: set[str] | None = None
        self._story = ""

    def run(self, received: list[int]) -> None:
        """Go on until ``received`` holds SIGTERM or SIGINT."""
        heard: list[News] = []
        while not {signal.SIGTERM, signal.SIGINT} & set(received):
            now = self._clock()
            news = self._watch.wait(self._pace.sleep(now))
            now = self._clock()
            heard = [*heard, *news][-100:]
            if news or self._differs(now):
                # Until a proxy's new MAC is known, replies to it leave past it; and a neighbour comes alone.
                self._pace.heard(now, urgent=any(item.kind == "neighbour" for item in news))
            asked = signal.SIGHUP in received
            if asked:
                received.remove(signal.SIGHUP)
            if asked or (self._pace.due(now) and not self._is_as_known(now)):
                self._look(heard)
                heard = []

    def _differs(self, now: float) -> bool:
        """Whether something without news has changed: a document, iptables-legacy, a setting."""
        if not self._pace.silent_due(now):
            return False
        if now - self._alive_at >= ALIVE:
            self._tell_alive(now)
        return self._documents.changed or self._watch.signs != self._signs or settings_differ(self._found, self._host)

    def _is_as_known(self, now: float) -> bool:
        """Whether a glance is enough: nothing happened, and all is as it was when a look found nothing to do.

        Where iptables-legacy has anything, it is not: its signs are not exact.
        """
        if any(self._watch.signs) or not (self._found.is_lasting and self._pace.only_by_the_clock(now)):
            return False
        cpu = self._cpu()
        self._seen = self._digest(self._found, self._host)
        if self._seen is None or self._seen != self._known:
            return False
        self._pace.glanced(self._clock(), self._cpu() - cpu)
        return True

    def _look(self, heard: list[News]) -> None:
        before, signs = self._found, self._watch.signs
        broken_at, cpu = self._pace.broken_at, self._cpu()
        found = self._found = look(self._documents, self._host, now=self._record.clock())
        now, cost = self._clock(), self._cpu() - cpu
        # Of before the look, lest a change meanwhile be missed; if we changed them ourselves, they are of no use.
        self._signs = None if any(signs) and found.changed else signs
        whole = found.is_lasting and not found.changed and found.documents == before.documents
        self._known, self._seen = (self._seen or self._known) if whole else None, None
        repaired = [owner for owner in found.outcomes if self._was_repaired(owner, before)]
        # The same rule, wherever it has to stand by now.
        done = [change for owner in repaired for change in found.outcomes[owner].changes]
        changes = [re.sub(r"rule \d+:", "rule:", change) for change in done]
        self._pace.looked(now, changes, found.missing, found.failed, found.next_due, cost)
        self._watch.watch(found.interest)
        for owner in found.outcomes:
            if owner in repaired:
                self._repaired(owner, heard, now - broken_at if heard and broken_at is not None else None)
            else:
                self._note_applied(owner)
        # What is blocked now was applied all the same, and is repaired once it can be.
        kept = {owner: document for owner, document in self._applied.items() if owner in found.documents}
        whole = {owner: found.documents[owner] for owner, outcome in found.outcomes.items() if not outcome.missing}
        self._applied = {**kept, **whole}
        self._warn(before)
        self._publish()

    def _was_repaired(self, owner: str, before: Look) -> bool:
        """It had been applied as the document still says, and the change is not merely what was waited for."""
        outcome, earlier = self._found.outcomes[owner], before.outcomes.get(owner)
        came_or_went = earlier is not None and (
            set(earlier.waiting) - set(outcome.waiting)
            or set(earlier.retiring) - set(outcome.retiring)
            or earlier.left_out != outcome.left_out
        )
        return outcome.changed and not came_or_went and self._applied.get(owner) == self._found.documents[owner]

    def _note_applied(self, owner: str) -> None:
        outcome = self._found.outcomes[owner]
        if self._at_start is None:
            self._at_start = set(self._found.documents)
        if outcome.changed:
            log.info("%s: applied: %s", owner, "; ".join(outcome.changes))
            if owner in self._at_start:
                self._record.restored += len(outcome.changes)
        if not outcome.missing:
            self._at_start.discard(owner)

    def _repaired(self, owner: str, heard: list[News], seconds: float | None) -> None:
        outcome = self._found.outcomes[owner]
        since = self._clock() - (seconds or 0.0)
        undone = self._pace.undone
        if undone > FIGHT and undone & (undone - 1):
            # In a fight only now and then: asking who it is costs more than the repair, and a log has an end.
            who = self._record.last.who if self._record.last else ""
            self._record.repaired(Repair(owner, outcome.changes, self._record.clock(), seconds, who), outcome.kinds)
            return
        verdict = attribution.find(outcome.kinds, heard, self._host.runner, self._watch.sees_processes, since)
        repair = Repair(owner, outcome.changes, self._record.clock(), seconds, verdict.who)
        self._record.repaired(repair, outcome.kinds)
        took = "" if seconds is None else f" {seconds:.2f} s after it was gone"
        by = f" ({verdict.who})" if verdict.who else ""
        log.warning("%s: repaired%s%s: %s", owner, took, by, "; ".join(outcome.changes))
        if self._pace.undone >= FIGHT:
            remedy = f"; {verdict.remedy}" if verdict.remedy else ""
            log.error(
                "%s: undone %d times in a row%s, so the next repair waits %g s%s",
                *(owner, self._pace.undone, by, self._pace.pause, remedy),
            )

    def _warn(self, before: Look) -> None:
        known = {warning for outcome in before.outcomes.values() for warning in outcome.warnings}
        for owner, outcome in self._found.outcomes.items():
            for warning in outcome.warnings:
                if warning not in known:
                    log.warning("%s: %s", owner, warning)
        for problem in self._found.problems:
            if problem not in before.problems:
                log.warning("%s", problem)

    def _tell_alive(self, now: float) -> None:
        self._tell("WATCHDOG=1")
        self._alive_at = now

    def _publish(self) -> None:
        self._tell_alive(self._clock())
        self._record.undone = self._pace.undone if self._pace.undone >= FIGHT else 0
        self._record.looked(self._found)
        if not self._story:
            self._tell("READY=1")
        if self._record.story != self._story:
            self._story = self._record.story
            self._tell(f"STATUS={self._story}")
        try:
            self._record.write()
        except OSError as error:
            log.warning("cannot write %s: %s", self._record.path, error)


def _once(documents: Documents, host: Host) -> int:
    found = look(documents, host)
    for owner, outcome in found.outcomes.items():
        for sentence in (*outcome.changes, *outcome.warnings):
            log.info("%s: %s", owner, sentence)
    log.info("%s", "; ".join(found.problems) or f"applied: {', '.join(found.outcomes) or 'no documents'}")
    return EXIT_FAILED if found.problems else EXIT_DONE


def _show(documents: Documents, host: Host, out: TextIO) -> int:
    found = look(documents, host, check=True)
    for owner, outcome in found.outcomes.items():
        out.writelines(f"{owner}: {sentence}\n" for sentence in outcome.changes)
    out.writelines(f"{sentence}\n" for sentence in [*found.faults, *found.blocked, *found.waiting])
    if found.faults or found.blocked:
        return EXIT_FAILED
    return EXIT_DRIFT if found.changed else EXIT_DONE
