# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``l4proxy keep``: apply every stored document at boot, again and again until the host is as they say.

At boot links, addresses and proxies appear in any order, so what is not there yet is waited for, with a back-off. What
waiting cannot mend (a bad document, another owner's rule) is told, does not keep the other documents from being
applied, and makes the exit status 1.

A service with RemainAfterExit=yes and NotifyAccess=main: its status line says what is awaited. READY=1 is sent as
soon as all that can be applied is applied, be it without the MAC of a proxy that is down; the process goes on asking
for that MAC, and ends when nothing is left to do.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TextIO

from . import engine, store
from .document import Document
from .engine import Host, Outcome
from .errors import ApplyError, MissingPackage, NotReady, Refused, RoutingError

EXIT_DONE, EXIT_FAILED, EXIT_DRIFT = 0, 1, 2
# Seconds between two passes: quick while a boot is under way, then sparing.
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0

log = logging.getLogger("l4proxy.keep")


@dataclass
class Pass:
    """What one look at all documents came to. Sentences, each beginning with the owner or the file."""

    faults: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def applied(self) -> bool:
        """All that can be applied now is applied."""
        return not self.blocked

    @property
    def story(self) -> str:
        """The state in one line, for systemctl status."""
        parts = [*self.blocked, *self.waiting, *self.faults]
        return "; ".join(parts) or f"applied: {', '.join(self.outcomes) or 'no documents'}"


def run(
    directory: str = store.DIRECTORY,
    once: bool = False,
    dry_run: bool = False,
    host: Host | None = None,
    out: TextIO | None = None,
    sleep: Callable[[float], None] = time.sleep,
    environ: Mapping[str, str] | None = None,
) -> int:
    """Apply all documents of a directory; 0 when all is applied, 1 when something is wrong that waiting cannot mend.

    ``once`` makes one pass only (1 when something is still missing). ``dry_run`` changes nothing, writes the difference
    to ``out`` and returns 2 when there is one.
    """
    host = host or Host()
    environ = os.environ if environ is None else environ
    if dry_run:
        return _show(directory, host, out or sys.stdout)
    pause, ready, story = FIRST_PAUSE, False, ""
    while True:
        done = look(directory, host)
        if done.story != story:
            story = done.story
            log.info("%s", story)
            _notify(f"STATUS={story}", environ)
        if done.applied and not ready:
            ready = True
            _notify("READY=1", environ)
        if once or not (done.blocked or done.waiting):
            return EXIT_FAILED if done.faults or done.blocked or done.waiting else EXIT_DONE
        # The later keeper waits here for the kernel's news (links, addresses, rules) as well as for the clock.
        sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


def look(directory: str, host: Host, check: bool = False) -> Pass:
    """Read the directory and apply (with ``check``: compare) each document."""
    found = Pass()
    for stored in store.load_all(directory):
        if stored.document is None:
            found.faults += [f"{stored.path}: {error}" for error in stored.errors]
            continue
        _apply(stored.document, host, check, found)
    return found


def _apply(document: Document, host: Host, check: bool, found: Pass) -> None:
    owner = document.owner
    try:
        # An empty document was stored by someone who said so; there is nobody to ask at boot.
        outcome = engine.reconcile(document, host, check=check, allow_empty=True)
    except NotReady as error:
        found.blocked += [f"{owner}: {sentence}" for sentence in error.errors]
    except (Refused, MissingPackage) as error:
        found.faults.append(f"{owner}: {error}")
    except (ApplyError, RoutingError, OSError) as error:
        # Perhaps a link went away in the middle of it: worth another try.
        found.blocked.append(f"{owner}: {error}")
    else:
        found.outcomes[owner] = outcome
        found.waiting += [f"{owner}: {sentence}" for sentence in outcome.waiting]
        if not check:
            for sentence in (*outcome.changes, *outcome.warnings):
                log.info("%s: %s", owner, sentence)


def _show(directory: str, host: Host, out: TextIO) -> int:
    found = look(directory, host, check=True)
    for owner, outcome in found.outcomes.items():
        out.writelines(f"{owner}: {sentence}\n" for sentence in outcome.changes)
    problems = [*found.faults, *found.blocked]
    out.writelines(f"{sentence}\n" for sentence in [*problems, *found.waiting])
    if problems:
        return EXIT_FAILED
    return EXIT_DRIFT if any(outcome.changed for outcome in found.outcomes.values()) else EXIT_DONE


def _notify(message: str, environ: Mapping[str, str]) -> None:
    """sd_notify(3); without NOTIFY_SOCKET nobody listens."""
    path = environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        try:
            notify.sendto(message.encode(), address)
        except OSError as error:
            log.warning("cannot tell systemd (%s): %s", path, error)
