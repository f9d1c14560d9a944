# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The keeper's loop: it brings the host in line with its documents at boot, and again whenever something changes.

At boot links, addresses and proxies appear in any order, so the keeper waits for what is missing. Later the kernel's
notifications (``monitor``) tell when to run a pass; each pass (``reconcile_pass``) reads the documents, compares them
with the host and repairs it. ``schedule`` says how often, ``state_file`` publishes the result.

The service has Type=notify and starts before the network. It is ready after the first pass: what needs no link is in
place before the first packet arrives, and the boot does not wait for what is missing. SIGTERM ends it and leaves
everything in place; SIGHUP starts a pass.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..document.documents import Document
from ..reconcile.host import Host
from . import attribution, fingerprint
from .announcer import Announcer
from .counters_file import CountersFile
from .kernel_services import KernelServices
from .monitor import Notification
from .proxy_watch import ProxyWatch
from .reconcile_pass import Documents, PassResult, reconcile_all, settings_differ
from .schedule import Schedule
from .state_file import Repair, StateFile

# Seconds between watchdog messages to systemd; the unit's WatchdogSec is six times that.
WATCHDOG = 30.0
READY = "READY=1"
# After this many reverted repairs in a row, log a conflict.
CONFLICT = 3
RESTORED = "restore the nft table of services"

log = logging.getLogger("l4proxy.keep")


class Keeper:
    """``monitor`` is a Monitor or has its interface; ``notify`` sends a line to systemd.

    ``clock`` returns monotonic seconds, ``cpu`` the CPU seconds of this process and its children, ``compute`` the
    fingerprint of the host. ``counters`` is the file for those of kernel services.
    """

    def __init__(
        self,
        documents: Documents,
        host: Host,
        monitor: Any,
        state: StateFile,
        notify: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[], float] = lambda: sum(os.times()[:4]),
        compute: Callable[[PassResult, Host], bytes | None] = fingerprint.compute,
        counters: CountersFile | None = None,
    ):
        self._proxies = ProxyWatch(host.make_kernel, clock, state.clock)
        self._documents, self._host = documents, replace(host, answers=self._proxies.answers)
        self._monitor, self._state = monitor, state
        self._notify, self._clock, self._cpu, self._compute = notify, clock, cpu, compute
        self._services = KernelServices(
            self._host, monitor, counters or CountersFile(), lambda: documents.changed, clock, cpu
        )
        self._announcer = Announcer(host.make_kernel, host.admin_socket, monitor, clock, state.clock)
        self._schedule = Schedule(clock())
        self._result = PassResult()
        # The fingerprint of iptables-legacy before the last pass; None if that pass changed it.
        self._legacy: tuple[bytes, ...] | None = None
        # Fingerprints of the host: of a stable one, which a pass would not change, and the latest.
        self._stable: bytes | None = None
        self._latest: bytes | None = None
        self._watchdog_at = clock()
        # By owner: the document that was last applied completely.
        self._applied: dict[str, Document] = {}
        # Owners that are still incomplete since the start, so that their changes are no repairs.
        self._starting: set[str] | None = None
        self._status_line = ""

    def run(self, received: list[int]) -> None:
        """Run until ``received`` contains SIGTERM or SIGINT."""
        pending: list[Notification] = []
        while not {signal.SIGTERM, signal.SIGINT} & set(received):
            now = self._clock()
            waits = (self._schedule, self._proxies, self._services, self._announcer)
            notifications = self._monitor.wait(min(each.sleep(now) for each in waits))
            if self._proxies.tend() | self._announcer.tend():
                self._publish()
            if self._services.tend(self._monitor.ready):
                self._schedule.notified(self._clock(), urgent=True)
            if any(item.kind == "marks" for item in notifications) and self._schedule.reverted < CONFLICT:
                self._services.restore()
            now = self._clock()
            pending = [*pending, *notifications][-100:]
            if notifications or self._poll_differs(now):
                # Replies bypass a proxy whose new MAC is unknown; and no burst follows a neighbour notification.
                self._schedule.notified(now, urgent=any(item.kind == "neighbour" for item in notifications))
            requested = signal.SIGHUP in received
            if requested:
                received.remove(signal.SIGHUP)
            if requested or (self._schedule.is_due(now) and not self._is_unchanged(now)):
                self._pass(pending)
                pending = []
        self._services.finish()

    def _poll_differs(self, now: float) -> bool:
        """Whether something that sends no notifications has changed: a document, iptables-legacy, a setting."""
        if not self._schedule.poll_is_due(now):
            return False
        if now - self._watchdog_at >= WATCHDOG:
            self._send_watchdog(now)
        legacy = self._monitor.legacy_fingerprint
        return self._documents.changed or legacy != self._legacy or settings_differ(self._result, self._host)

    def _is_unchanged(self, now: float) -> bool:
        """Whether a due pass can be skipped, because the host's fingerprint is still that of a stable one.

        Never where iptables-legacy has rules: its fingerprint is not exact.
        """
        if any(self._monitor.legacy_fingerprint) or not (self._result.is_stable and self._schedule.may_compare(now)):
            return False
        cpu = self._cpu()
        self._latest = self._compute(self._result, self._host)
        if self._latest is None or self._latest != self._stable:
            return False
        self._schedule.compared(self._clock(), self._cpu() - cpu)
        return True

    def _pass(self, pending: list[Notification]) -> None:
        before, legacy = self._result, self._monitor.legacy_fingerprint
        broken_at, cpu = self._schedule.broken_at, self._cpu()
        result = self._result = reconcile_all(self._documents, self._host, now=self._state.clock())
        if self._services.restored:
            self._add_restored(result)
        now, cost = self._clock(), self._cpu() - cpu
        # Taken before the pass, so that a change meanwhile is not missed; useless if the pass itself changed it.
        self._legacy = None if any(legacy) and result.changed else legacy
        stable = result.is_stable and not result.changed and result.documents == before.documents
        self._stable, self._latest = (self._latest or self._stable) if stable else None, None
        repaired = [owner for owner in result.outcomes if self._was_repaired(owner, before)]
        changes = [change for owner in repaired for change in result.outcomes[owner].changes]
        # Without its priority: the same rule may have been moved.
        changes = [re.sub(r"rule \d+:", "rule:", change) for change in changes]
        self._schedule.passed(now, changes, result.is_incomplete, result.failed, result.next_due, cost)
        self._monitor.watch(result.interest)
        self._proxies.follow(result.documents)
        self._announcer.follow(result.documents, complete=not result.problems)
        # A pass with problems may not have come to the services.
        if result.served or not result.problems:
            self._services.follow(result.served)
        for owner in result.outcomes:
            if owner in repaired:
                self._record_repair(owner, pending, now - broken_at if pending and broken_at is not None else None)
            else:
                self._record_applied(owner)
        # A document that is blocked now stays in the list: once it can be applied again, that is a repair.
        kept = {owner: document for owner, document in self._applied.items() if owner in result.documents}
        complete = [owner for owner, outcome in result.outcomes.items() if not outcome.missing]
        self._applied = {**kept, **{owner: result.documents[owner] for owner in complete}}
        for owner, outcome in result.outcomes.items():
            for cut in outcome.cut:
                self._state.cut += cut.connections
                log.warning("%s: %s", owner, cut.sentence)
        self._log_new_warnings(before)
        self._publish()

    def _add_restored(self, result: PassResult) -> None:
        """Let a pass count that the table of kernel services was restored before it."""
        self._services.restored = False
        for owner, outcome in result.outcomes.items():
            if result.served and owner == result.served.owner and not outcome.changes:
                result.outcomes[owner] = replace(outcome, changes=(RESTORED,), kinds=("services",))

    def _was_repaired(self, owner: str, before: PassResult) -> bool:
        """Whether an applied document was changed back, not merely completed with what it had waited for."""
        outcome, earlier = self._result.outcomes[owner], before.outcomes.get(owner)
        completed = earlier is not None and (
            set(earlier.waiting) - set(outcome.waiting)
            or set(earlier.retiring) - set(outcome.retiring)
            or earlier.left_out != outcome.left_out
        )
        return outcome.changed and not completed and self._applied.get(owner) == self._result.documents[owner]

    def _record_applied(self, owner: str) -> None:
        outcome = self._result.outcomes[owner]
        if self._starting is None:
            self._starting = set(self._result.documents)
        if outcome.changed:
            log.info("%s: applied: %s", owner, "; ".join(outcome.changes))
            if owner in self._starting:
                self._state.restored += len(outcome.changes)
        if not outcome.missing:
            self._starting.discard(owner)

    def _record_repair(self, owner: str, pending: list[Notification], seconds: float | None) -> None:
        outcome, reverted = self._result.outcomes[owner], self._schedule.reverted
        changed_at = self._clock() - (seconds or 0.0)
        if reverted > CONFLICT and reverted & (reverted - 1):
            # In a conflict only at powers of two: finding the cause costs more than the repair, and logs are finite.
            who = self._state.last.who if self._state.last else ""
            self._state.add_repair(Repair(owner, outcome.changes, self._state.clock(), seconds, who), outcome.kinds)
            return
        cause = attribution.find(outcome.kinds, pending, self._host.runner, self._monitor.sees_processes, changed_at)
        repair = Repair(owner, outcome.changes, self._state.clock(), seconds, cause.who)
        self._state.add_repair(repair, outcome.kinds)
        after = "" if seconds is None else f" {seconds:.2f} s after the change"
        by = f" ({cause.who})" if cause.who else ""
        log.warning("%s: repaired%s%s: %s", owner, after, by, "; ".join(outcome.changes))
        if reverted >= CONFLICT:
            remedy = f"; {cause.remedy}" if cause.remedy else ""
            log.error(
                "%s: the repair was reverted %d times in a row%s; the next one waits %g s%s",
                *(owner, reverted, by, self._schedule.pause, remedy),
            )

    def _log_new_warnings(self, before: PassResult) -> None:
        known = {warning for outcome in before.outcomes.values() for warning in outcome.warnings}
        for owner, outcome in self._result.outcomes.items():
            for warning in outcome.warnings:
                if warning not in known:
                    log.warning("%s: %s", owner, warning)
        for problem in self._result.problems:
            if problem not in before.problems:
                log.warning("%s", problem)

    def _send_watchdog(self, now: float) -> None:
        self._notify("WATCHDOG=1")
        self._watchdog_at = now

    def _publish(self) -> None:
        self._send_watchdog(self._clock())
        self._state.reverted = self._schedule.reverted if self._schedule.reverted >= CONFLICT else 0
        problems = [*self._proxies.problems, *self._announcer.problems]
        self._state.update(self._result, problems, self._proxies.silent, self._announcer.state)
        if not self._status_line:
            self._notify(READY)
        if self._state.status_line != self._status_line:
            self._status_line = self._state.status_line
            self._notify(f"STATUS={self._status_line}")
        try:
            self._state.write()
        except OSError as error:
            log.warning("cannot write %s: %s", self._state.path, error)
