# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory that all processes of a generation share: counters, connection counts, and the states of the backends.

A region is a memfd full of 64-bit integers. Every cell has exactly one writer, so nothing is locked: each worker slot
has a row of its own, the checker and the supervisor have theirs; who wants a total sums the rows. Numbers that grow
never fall while their generation lives, also when a worker is replaced, because the next one of its slot goes on where
it ended. An aligned store of 8 bytes is seen whole by every reader on the processors Linux has 64-bit Python for.

A *target* is a backend of a service in one family: what a connection can be given to. The layout is described by a
JSON record that travels with the descriptor, so that a later version can read what an earlier one has counted. Behind
the rows are the tables of client_tables.py (one per worker, service and kind of limit), and last the heartbeats by
which the supervisor sees that a process is alive (heartbeat.py).
"""

from __future__ import annotations

import errno
import mmap
import os
from functools import cached_property

from . import client_tables

CELL = 8  # bytes

# Header cells. An epoch grows with each change, so a reader has to look at the states only when it did.
VERSION, EPOCH_HEALTH, EPOCH_ADMIN, COMMON_CAUSE_IPV4, COMMON_CAUSE_IPV6 = range(5)
HEADER = 16
LAYOUT_VERSION = 1

# States of a target as the checker publishes them. Zero is what an untouched region says: nobody has asked yet.
UNKNOWN, UP, BROKEN, DOWN = range(4)
STATES = ("unknown", "up", "return path broken", "down")

# What an operator has said.
READY, DRAINING, MAINTENANCE = range(3)
ADMIN_STATES = ("ready", "draining", "maintenance")

# One answer to a health question.
UNASKED, ANSWERED, UNANSWERED = range(3)

# Written by the checker but for the last two, which are the supervisor's. Times are monotonic milliseconds.
STATE_FIELDS = (
    "health",
    "server",
    "path",
    "server_errno",
    "path_errno",
    "since",
    "recovered",
    "checks",
    "server_failures",
    "path_failures",
    "suspect",  # 1 from the moment a client's connect failed and so did the checker's, until the next good answer
    "admin",
    "weight",
)

# Upper bounds of the connect latency histogram in microseconds; what is above the last goes to one more bucket.
LATENCY_BOUNDS = (250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000)
LATENCY_FIELDS = tuple(f"latency_{number}" for number in range(len(LATENCY_BOUNDS) + 1))

WORKER_FIELDS = (
    "failures",
    "accept_paused",
    "defects",
    "log_dropped",
    "datagrams_dropped",
    "datagrams_stray",
)
REFUSED = ("never_spoofed", "no_backend", "connect_failed", "limited", "denied", "bad_header", "other")
LADDER = ("kept", "any", "own", "refused", "port_taken", "port_not_permitted", "no_port_left")  # by source_address.py
SERVICE_FIELDS = (
    "sessions",
    "connections",
    *(f"refused_{cause}" for cause in REFUSED),
    *(f"source_{step}" for step in LADDER),
    "made_room",  # UDP sessions that were ended to have room for another one
)
FAILURES = ("refused", "unreachable", "timeout", "reset", "local")
TARGET_FIELDS = (
    "active",
    "connections",
    "bytes_to_backend",
    "bytes_to_client",
    *(f"failed_{cause}" for cause in FAILURES),
    "succeeded",  # monotonic milliseconds of the last connect that did
    "failed",
    "slow",  # of the last connect that took long enough for the checker to be asked
    "connect_microseconds",
    *LATENCY_FIELDS,
)
TIMES = {"succeeded", "failed", "slow"}
GAUGES = {"sessions", "active"}  # all others only grow


def describe(config, slots):
    """Return the JSON record of the layout for ``config`` and a number of worker slots."""
    services = []
    for service in config.services:
        targets = [
            {"backend": backend.name, "family": family, "address": backend.address(family), "port": backend.port}
            for family in ("ipv4", "ipv6")
            for backend in service.backends_of(family)
        ]
        services.append({"name": service.name, "targets": targets})
    fields = {"worker": WORKER_FIELDS, "service": SERVICE_FIELDS, "target": TARGET_FIELDS, "state": STATE_FIELDS}
    return {
        "slots": slots,
        "services": services,
        "fields": {key: list(names) for key, names in fields.items()},
        "beats": True,
        "clients": [[service.name, kind] for service in config.services for kind in _kinds(service.limits)],
    }


def _kinds(limits):
    """Return what is kept of the clients of a service."""
    kept = {client_tables.HELD: limits.connections_per_client, client_tables.RATE: limits.rate_per_client}
    return [kind for kind, limit in kept.items() if limit]


class Region:
    """One generation's shared memory. ``record`` is what describe() gave; ``fd`` None makes a new one, all zero.

    Rows 0 to slots - 1 are the workers', row ``slots`` is the supervisor's: what earlier generations still hold.
    Cells of one field of a row lie side by side in the order of services and targets.
    """

    def __init__(self, record, fd=None):
        self.record = record
        self.slots = record["slots"]
        self.services = [service["name"] for service in record["services"]]
        self.targets = [
            (service["name"], target["backend"], target["family"])
            for service in record["services"]
            for target in service["targets"]
        ]
        self._service_numbers = {name: number for number, name in enumerate(self.services)}
        self._first_targets: dict[tuple[str, str], int] = {}
        for number, (service, _backend, family) in enumerate(self.targets):
            self._first_targets.setdefault((service, family), number)
        self._fields = record["fields"]
        self.offsets = self._place()
        self._states = {name: HEADER + number * len(self.targets) for number, name in enumerate(self._fields["state"])}
        self._rows = HEADER + len(self._fields["state"]) * len(self.targets)
        tables = record.get("clients", ())  # none in a record of an earlier version
        self._tables = {tuple(one): number for number, one in enumerate(tables)}
        rows_end = (self._rows + self._row_size * (self.slots + 1)) * CELL
        self._tables_at = -(-rows_end // mmap.PAGESIZE) * mmap.PAGESIZE
        size = self._table_at(self.slots, 0) if self._tables else rows_end
        self._beats = size // CELL if record.get("beats") else None  # none in a record of an earlier version
        size += (self.slots + 1) * CELL if record.get("beats") else 0
        self.fd = os.memfd_create("l4proxy-shared", os.MFD_CLOEXEC) if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, size)
        else:
            os.set_inheritable(fd, False)
        self._map = mmap.mmap(self.fd, size)
        self.cells = memoryview(self._map).cast("q")
        self.cells[VERSION] = LAYOUT_VERSION

    def _place(self):
        """Return {(kind, field): offset in a row}, and note the size of a row."""
        offsets, offset = {}, 0
        for kind, count in (("worker", 1), ("service", len(self.services)), ("target", len(self.targets))):
            for name in self._fields[kind]:
                offsets[kind, name] = offset
                offset += count
        self._row_size = offset
        return offsets

    def cell(self, slot, kind, field, index=0):
        """Return the number of a cell: ``kind`` is worker, service or target, ``index`` which of its kind."""
        return self._rows + slot * self._row_size + self.offsets[kind, field] + index

    def row(self, slot):
        """Return all cells of a row as a list."""
        start = self._rows + slot * self._row_size
        return self.cells[start : start + self._row_size].tolist()

    def state_cell(self, field, target=0):
        """Return the number of a state cell; those of one field lie side by side."""
        return self._states[field] + target

    def state(self, field, target):
        """Return the value of a state cell."""
        return self.cells[self.state_cell(field, target)]

    @property
    def has_suspects(self):
        """Whether it has room for what the checker finds out about failures of clients: not in earlier versions."""
        return "suspect" in self._fields["state"]

    def set_state(self, field, target, value):
        """Write a state cell; its writer also moves its epoch on when it is done."""
        self.cells[self.state_cell(field, target)] = value

    def set_common_cause(self, family, on):
        """Say whether no return path of a family is whole (the checker does)."""
        self.cells[COMMON_CAUSE_IPV4 if family == "ipv4" else COMMON_CAUSE_IPV6] = int(on)

    def common_causes(self):
        """Return the families of which no return path is whole."""
        flags = {"ipv4": COMMON_CAUSE_IPV4, "ipv6": COMMON_CAUSE_IPV6}
        return [family for family, cell in flags.items() if self.cells[cell]]

    def told(self, question, target):
        """Return what is known of a health question ("server", "path"): "yes", "no: ERRNO" or "not asked"."""
        verdict = self.state(question, target)
        if verdict == UNANSWERED:
            return f"no: {errno.errorcode.get(self.state(f'{question}_errno', target), 'ETIMEDOUT')}"
        return "yes" if verdict == ANSWERED else "not asked"

    def advance(self, epoch):
        """Tell all readers that states have changed."""
        self.cells[epoch] += 1

    def total(self, kind, field, index=0):
        """Return the sum of a cell over all rows."""
        return sum(self.cells[self.cell(slot, kind, field, index)] for slot in range(self.slots + 1))

    def sessions(self, slot):
        """Return how many sessions a worker has."""
        first = self.cell(slot, "service", "sessions")
        return sum(self.cells[first : first + len(self.services)])

    def latest(self, field, target):
        """Return the greatest value of a target's cell over all rows."""
        return max(self.cells[self.cell(slot, "target", field, target)] for slot in range(self.slots + 1))

    def latest_of_all(self, field):
        """Return latest() of every target; all zero where the record, of an earlier version, has no such field."""
        count = len(self.targets)
        if ("target", field) not in self.offsets:
            return [0] * count
        starts = [self.cell(slot, "target", field) for slot in range(self.slots + 1)]
        return list(map(max, *(self.cells[start : start + count].tolist() for start in starts)))

    def first_target(self, service, family):
        """Return the number of the first target of a service and family, None when it has none."""
        return self._first_targets.get((service, family))

    def service_number(self, name):
        """Return the number of a service: its place among the cells of a field."""
        return self._service_numbers[name]

    @cached_property
    def targets_of(self):
        """The targets of each backend: {(service, backend): {family: number}}."""
        found: dict[tuple[str, str], dict[str, int]] = {}
        for number, (service, backend, family) in enumerate(self.targets):
            found.setdefault((service, backend), {})[family] = number
        return found

    def inherit(self, other, asked):
        """Take over what the checker of ``other`` has found out about targets that are the same in both.

        ``asked`` names the services whose backends are asked: what nobody asks any more nobody would correct.
        """
        places = {target: number for number, target in enumerate(other.places)}
        fields = [name for name in self._fields["state"] if name in other.record["fields"]["state"]]
        for number, target in enumerate(self.places):
            if target in places and target[0] in asked:
                for field in fields:
                    self.set_state(field, number, other.state(field, places[target]))

    @property
    def places(self):
        """What each target is, address and port included."""
        return [
            (service["name"], *(target[key] for key in ("backend", "family", "address", "port")))
            for service in self.record["services"]
            for target in service["targets"]
        ]

    def _table_at(self, slot, number):
        """Return where a table begins, in bytes."""
        return self._tables_at + (slot * len(self._tables) + number) * client_tables.CELLS * CELL

    def client_numbers(self, slot, service, kind):
        """Return the ClientNumbers of a worker slot; unshared ones if the record (of an earlier version) has none."""
        if (service, kind) not in self._tables:
            return client_tables.unshared()
        number = self._tables[service, kind]
        tables = [
            client_tables.ClientTable(self.cells, self._table_at(one, number) // CELL) for one in range(self.slots)
        ]
        return client_tables.ClientNumbers(tables, tables[slot])

    def beat_cell(self, slot):
        """Return the cell where the worker of a slot (``slots``: the checker) writes the time, None without one."""
        return None if self._beats is None else self._beats + slot

    def beat(self, slot):
        """Return when the process of a slot last wrote the time in monotonic seconds, None where it never did."""
        cell = self.beat_cell(slot)
        return self.cells[cell] / 1000 or None if cell is not None else None

    def reset_gauges(self, slot):
        """Forget what a worker that died had open; its successor calls this before it accepts."""
        for (_service, kind), number in self._tables.items():
            if kind == client_tables.HELD:  # its pages are given back, and read as zeros
                self._map.madvise(mmap.MADV_REMOVE, self._table_at(slot, number), client_tables.CELLS * CELL)
        for kind, count in (("worker", 1), ("service", len(self.services)), ("target", len(self.targets))):
            for field in self._fields[kind]:
                if field in GAUGES:
                    start = self.cell(slot, kind, field)
                    self.cells[start : start + count] = memoryview(bytes(count * CELL)).cast("q")

    def close(self):
        """Give the memory back."""
        self.cells.release()
        self._map.close()
        os.close(self.fd)
