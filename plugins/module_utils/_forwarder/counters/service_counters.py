# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The counters of one service, written by one worker."""

from __future__ import annotations

from functools import partial

from .shared_memory import ENDED, LADDER, REFUSED

PORT_SILENT = "port silent"


class ServiceCounters:
    """The cells of a service in the row of the worker ``slot``."""

    def __init__(self, region, slot, service):
        self._cells = region.cells
        self.client_numbers = partial(region.client_numbers, slot, service)  # takes a kind, HELD or RATE
        index = region.service_number(service)
        cells = region.cells_of(slot, "service", index)
        self._sessions, self._connections = cells["sessions"], cells["connections"]
        self._all_sessions = [region.cell(row, "service", "sessions", index) for row in range(region.slots + 1)]
        self._refused = {cause: cells[f"refused_{cause}"] for cause in REFUSED}
        self._made_room = cells.get("made_room")  # not in a record of version 0.1.0
        self._ended = {cause: cells.get(f"ended_{cause}") for cause in ENDED}  # neither are these
        steps = [step for step in LADDER if f"source_{step}" in cells]  # 0.1.0 lacks port_silent
        self._steps = {step.replace("_", " "): cells[f"source_{step}"] for step in steps}

    def began(self):
        """Count a new session."""
        self._cells[self._sessions] += 1
        self._cells[self._connections] += 1

    def taken_over(self):
        """Count a session that this worker continues for another one, or from an earlier config."""
        self._cells[self._sessions] += 1

    def finished(self):
        """Count the end of a session."""
        self._cells[self._sessions] -= 1

    def open(self):
        """Return the number of open sessions of the service in this worker."""
        return self._cells[self._sessions]

    def refused(self, cause):
        """Count a refused client; ``cause`` is one of shared_memory.REFUSED."""
        self._cells[self._refused[cause]] += 1

    def made_room(self):
        """Count a session that was ended to make room for a new one."""
        if self._made_room is not None:
            self._cells[self._made_room] += 1

    def ended(self, cause):
        """Count a session that the forwarder has ended; ``cause`` is one of shared_memory.ENDED."""
        if self._ended[cause] is not None:
            self._cells[self._ended[cause]] += 1

    def port_silent(self):
        """Count a connect that another source port had to answer."""
        if PORT_SILENT in self._steps:
            self.count(PORT_SILENT)

    def count(self, name):
        """Count a step of the source ladder (shared_memory.LADDER), such as "kept" or "port taken"."""
        self._cells[self._steps[name]] += 1

    def total(self):
        """Return the number of open sessions of the service, in all workers."""
        cells = self._cells
        return sum(cells[number] for number in self._all_sessions)
