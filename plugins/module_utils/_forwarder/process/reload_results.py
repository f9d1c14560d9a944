# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The results of reloads, and where they are shown: runtime file, log, service manager, status."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ..admin import runtime_file
from ..loop import own_addresses
from ..loop.log import Log
from .generation import Generation
from .notify import Notifier

RETRIED = "the forwarder tries again every few seconds"
ABSENT = "this host does not have the address; the service starts there when the address appears"


class ReloadResults:
    """``attempt`` counts the reloads that have begun; attempt 0 is the start of the forwarder.

    ``new_processes_because`` says why the reload in progress does not change the config in place.
    """

    def __init__(self, log: Log, notifier: Notifier):
        self.attempt = 0
        self.counts = {"ok": 0, "failed": 0}
        self.new_processes_because: str | None = None
        self.last = self._result(None, in_place=False)
        self._log = log
        self._notifier = notifier
        self._path = runtime_file.path()

    def records(self) -> dict:
        """Return everything as JSON for the next program."""
        records = {"attempt": self.attempt, "last_reload": self.last, "reloads": self.counts}
        return {**records, "new_processes_because": self.new_processes_because}

    def adopt(self, records: dict):
        """Take over the records() of the previous program; other keys are ignored."""
        self.attempt, self.last, self.counts = records["attempt"], records["last_reload"], records["reloads"]
        self.new_processes_because = records.get("new_processes_because")  # missing in version 0.1.0

    def begin(self):
        """Count a reload that begins."""
        self.attempt += 1
        self.new_processes_because = None
        self._log.event("reload", attempt=self.attempt)
        self._notifier.reloading()

    def succeeded(self, live: Generation, listeners: Iterable[str], in_place: bool):
        """Record that a generation has become live; ``listeners`` are the names of its listening sockets.

        ``in_place``: its workers are those of the generation before.
        """
        self._record(None, live, in_place)
        self._log.event(
            "serving",
            generation=live.number,
            version=live.version,
            config=live.config_file,
            archive=live.archive,
            workers=live.slots,
            in_place=in_place,
            listeners=sorted(listeners),
            in_kernel=[service.name for service in live.config.services if service.in_kernel],
        )
        for name, addresses in own_addresses.absent(live.config.services).items():
            self._log.event("listen address absent", level="warning", service=name, listen=addresses, reason=ABSENT)
        if "error" in live.config_file:
            reason = live.config_file["error"]
            self._log.event("last good config", level="error", config=live.config_file["path"], reason=reason)
        for name, reason in live.failed.items():
            self._log.event("not listening", level="error", on=name, reason=f"{reason}; {RETRIED}")
        but = f", but cannot listen on {', '.join(live.failed)}" if live.failed else ""
        self._notifier.ready(f"generation {live.number} serves {len(live.config.services)} service(s){but}")

    def failed(self, error: str, live: Generation):
        """Record that a reload failed and why; ``live`` is the generation that still serves."""
        self._record(error, live)
        self._log.event("reload failed", level="error", reason=error, serving=live.number)
        self._notifier.ready(f"generation {live.number} serves; the last reload failed: {error}")

    def _result(self, error, in_place):
        because = {"in_place": in_place, "new_processes_because": self.new_processes_because}
        return {"attempt": self.attempt, "ok": error is None, "error": error, "at": runtime_file.timestamp(), **because}

    def _record(self, error, live, in_place=False):
        self.last = self._result(error, in_place)
        if self.attempt:
            self.counts["ok" if error is None else "failed"] += 1
        self._write(live)

    def _write(self, live):
        pid = os.getpid()
        document = {"schema": runtime_file.SCHEMA, "pid": pid, "started": runtime_file.start_time(pid)}
        document.update(live.description(), last_reload=self.last)
        try:
            runtime_file.write(document, self._path)
        except OSError as failure:
            self._log.event("runtime file not written", level="error", path=self._path, reason=str(failure))

    def listening_again(self, live: Generation, servers: Iterable[str]):
        """Record that servers which could not be bound before listen now."""
        for name in servers:
            self._log.event("listening again", on=name)
        self._write(live)

    def remove_file(self):
        """Remove the runtime file, if this process has written it."""
        if (runtime_file.read(self._path) or {}).get("pid") == os.getpid():
            runtime_file.remove(self._path)
