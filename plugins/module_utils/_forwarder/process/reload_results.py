# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The results of reloads: how many succeeded and failed, and the last one, which the runtime file shows as well."""

from __future__ import annotations

import os

from ..admin import runtime_file
from ..loop.log import Log
from .generation import Generation


class ReloadResults:
    """``attempt`` counts the reloads that have begun; attempt 0 is the start of the forwarder."""

    def __init__(self, log: Log):
        self.attempt = 0
        self.counts = {"ok": 0, "failed": 0}
        self.last = {"attempt": 0, "ok": True, "error": None, "at": runtime_file.timestamp()}
        self._log = log
        self._path = runtime_file.path()

    def records(self) -> dict:
        """Return everything as JSON for the next program."""
        return {"attempt": self.attempt, "last_reload": self.last, "reloads": self.counts}

    def adopt(self, records: dict):
        """Take over the records() of the previous program; other keys are ignored."""
        self.attempt, self.last, self.counts = records["attempt"], records["last_reload"], records["reloads"]

    def add(self, error: str | None, live: Generation):
        """Record that a reload failed with ``error``, or (None) succeeded, and write the runtime file."""
        self.last = {"attempt": self.attempt, "ok": error is None, "error": error, "at": runtime_file.timestamp()}
        if self.attempt:
            self.counts["ok" if error is None else "failed"] += 1
        pid = os.getpid()
        document = {"schema": runtime_file.SCHEMA, "pid": pid, "started": runtime_file.start_time(pid)}
        document.update(live.description(), last_reload=self.last)
        try:
            runtime_file.write(document, self._path)
        except OSError as failure:
            self._log.event("runtime file not written", level="error", path=self._path, reason=str(failure))

    def remove_file(self):
        """Remove the runtime file, if it is this process's."""
        if (runtime_file.read(self._path) or {}).get("pid") == os.getpid():
            runtime_file.remove(self._path)
