# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``l4proxy keep``: run the keeper until SIGTERM, make one pass (--once), or show the changes of a pass (--dry-run)."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TextIO

from ..._shared import paths
from ..host.mac_cache import NAME as MACS
from ..host.mac_cache import Macs
from ..reconcile.host import Host
from .counters_file import NAME as COUNTERS
from .counters_file import CountersFile
from .loop import READY, Keeper
from .monitor import Monitor
from .notify import notify
from .reconcile_pass import Documents, reconcile_all
from .starting import StartTimer
from .state_file import NAME, StateFile

EXIT_DONE, EXIT_FAILED, EXIT_DRIFT = 0, 1, 2
# Seconds to wait for a proxy's MAC within a pass. A later answer is a notification, and other documents must not wait.
NEIGHBOUR_WAIT = 0.03

log = logging.getLogger("l4proxy.keep")


def run(
    directory: str = paths.DOCUMENTS,
    once: bool = False,
    dry_run: bool = False,
    host: Host | None = None,
    out: TextIO | None = None,
    environ: Mapping[str, str] | None = None,
    timer: StartTimer | None = None,
) -> int:
    """Keep the documents of a directory until SIGTERM, and return 0.

    ``once`` makes one pass: it returns 0 if everything is applied, 1 if something is missing or invalid. ``dry_run``
    changes nothing, writes the changes of a pass to ``out``, and returns 2 if there are any. ``timer`` ends when the
    start is complete.
    """
    environ = os.environ if environ is None else environ
    host, documents = host or Host(), Documents(directory)
    state_directory = _directory(environ, "STATE_DIRECTORY")
    if state_directory:
        host = replace(host, macs=Macs(os.path.join(state_directory, MACS)))
    if dry_run:
        return _show(documents, host, out or sys.stdout)
    if once:
        return _once(documents, host)
    runtime = _directory(environ, "RUNTIME_DIRECTORY")
    state = StateFile(os.path.join(runtime, NAME) if runtime else None)
    state.load()
    counters = CountersFile(
        os.path.join(runtime, COUNTERS) if runtime else None,
        saved=os.path.join(state_directory, COUNTERS) if state_directory else None,
    )
    with _signals() as (wake, received):
        monitor = Monitor(wake)
        try:
            host = replace(host, neighbour_wait=NEIGHBOUR_WAIT)

            def tell(text: str) -> None:
                if text == READY and timer:
                    timer.end()
                notify(text, environ)

            Keeper(documents, host, monitor, state, tell, counters=counters).run(received)
        finally:
            monitor.close()
    return EXIT_DONE


def _directory(environ: Mapping[str, str], name: str) -> str:
    """A directory that systemd made for the service; empty if an operator runs the command, perhaps beside it."""
    return environ.get(name, "").split(":")[0]


@contextmanager
def _signals() -> Iterator[tuple[int, list[int]]]:
    """A descriptor that becomes readable on a signal, and the list of the SIGTERM, SIGINT and SIGHUP received."""
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


def _once(documents: Documents, host: Host) -> int:
    result = reconcile_all(documents, host, now=time.time())
    for owner, outcome in result.outcomes.items():
        for sentence in (*(cut.sentence for cut in outcome.cut), *outcome.changes, *outcome.warnings):
            log.info("%s: %s", owner, sentence)
    log.info("%s", "; ".join(result.problems) or f"applied: {', '.join(result.outcomes) or 'no documents'}")
    return EXIT_FAILED if result.problems else EXIT_DONE


def _show(documents: Documents, host: Host, out: TextIO) -> int:
    # Without a time no drain ends: what the keeper is about to remove is no difference.
    result = reconcile_all(documents, host, check=True, now=None)
    for owner, outcome in result.outcomes.items():
        out.writelines(f"{owner}: {sentence}\n" for sentence in outcome.changes)
        out.writelines(f"{owner}: kept while connections need it: {sentence}\n" for sentence in outcome.retiring)
    out.writelines(f"{sentence}\n" for sentence in [*result.faults, *result.blocked, *result.waiting])
    if result.faults or result.blocked:
        return EXIT_FAILED
    return EXIT_DRIFT if result.changed else EXIT_DONE
