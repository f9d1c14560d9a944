# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory that all processes of a generation share: counters, open connections and the states of backends.

A region is a memfd of 64-bit integers, the cells. Each cell has exactly one writer, so no locks are needed: every
worker slot has a row of its own, and so has the supervisor; the checker writes the states. A total is the sum over all
rows. Counters do not decrease while their generation lives, not even when a worker is replaced: the next worker of the
slot continues the row. On all processors with a 64-bit Linux an aligned store of 8 bytes is atomic.

A *target* is a backend of a service in one address family. A JSON record, which is handed over with the descriptor,
describes the layout, so that another version can read the counters. After the rows come the tables of client_tables.py
(one per worker, service and kind of limit), then the heartbeats (heartbeat.py), and then the supervisor's tables of the
clients that old generations have.
"""

from __future__ import annotations

import mmap
import os
from functools import cached_property

from . import agent_state, client_tables, probe_results

CELL = 8  # bytes

# Header cells. An epoch is incremented with each change of states, so readers need to read those only then.
# CLIENTS_ELSEWHERE is 1 while clients have connections in old generations that count for their limits.
VERSION, EPOCH_HEALTH, EPOCH_ADMIN, COMMON_CAUSE_IPV4, COMMON_CAUSE_IPV6, CLIENTS_ELSEWHERE = range(6)
HEADER = 16
LAYOUT_VERSION = 1

# Health of a target, which the checker writes. A new region is all zeros: not checked yet.
UNKNOWN, UP, BROKEN, DOWN = range(4)
STATES = ("unknown", "up", "return path broken", "down")

# Overrides of operators.
READY, DRAINING, MAINTENANCE = range(3)
ADMIN_STATES = ("ready", "draining", "maintenance")
DISABLED = "disabled"  # what is shown of a backend that the config gives no new connections; not in a region

UNASKED, ANSWERED, UNANSWERED = range(3)  # result of one health probe

# Written by the checker, except the last two, which the supervisor writes. Times are monotonic milliseconds.
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
    *("flaps", "back_at"),  # backends/flapping.py
    "suspect",  # 1 from when connects of a client and of the checker have failed until a probe is answered
    "admin",
    "weight",
)

# Upper bounds of the connect latency histogram, in microseconds; one more bucket has what is above the last.
LATENCY_BOUNDS = (250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000)
LATENCY_FIELDS = tuple(f"latency_{number}" for number in range(len(LATENCY_BOUNDS) + 1))

WORKER_FIELDS = (
    "failures",
    "accept_paused",
    "defects",
    "log_dropped",
    "datagrams_dropped",
    "datagrams_stray",
    "removal_ended",  # sessions that were ended because their service, listener or backend had left the config
)
REFUSED = ("never_spoofed", "no_backend", "connect_failed", "limited", "denied", "bad_header", "other")
LADDER = (  # by source_address.py, and port_silent by tcp/other_ports.py
    "kept",
    "any",
    "own",
    "refused",
    "port_taken",
    "port_not_permitted",
    "no_port_left",
    "port_silent",
)
ENDED = ("backend_down", "denied")  # why the forwarder ends sessions of a service that stays
SERVICE_FIELDS = (
    "sessions",
    "connections",
    *(f"refused_{cause}" for cause in REFUSED),
    *(f"source_{step}" for step in LADDER),
    "made_room",  # UDP sessions that were ended to make room for new ones
    *(f"ended_{cause}" for cause in ENDED),
)
DATAGRAM_FIELDS = ("datagrams_to_backend", "datagrams_to_client")
FAILURES = ("refused", "unreachable", "timeout", "reset", "local")
TARGET_FIELDS = (
    "active",
    "connections",
    "bytes_to_backend",
    "bytes_to_client",
    *(f"failed_{cause}" for cause in FAILURES),
    "succeeded",  # monotonic milliseconds of the last successful connect
    "failed",
    "slow",  # time of the last connect so slow that the checker should probe the target
    "connect_microseconds",
    *LATENCY_FIELDS,
    *DATAGRAM_FIELDS,
    *("tcp_samples", "retransmits", "rtt_microseconds"),  # of tcp/samples.py
    "sampled",  # time of the last sample
    "passed_over",  # connections that hash_balance_factor gave to another backend
)
TIMES = {"succeeded", "failed", "slow", "sampled"}
AVERAGES = {"rtt_microseconds"}  # no sum: see totals.round_trips()
GAUGES = {"sessions", "active", *AVERAGES}  # all others only increase


def describe(config, slots):
    """Return the JSON record of the layout for ``config`` and ``slots`` workers."""
    services = []
    for service in config.services:
        targets = [
            {"backend": backend.name, "family": family, "address": backend.address(family), "port": backend.port}
            for family in ("ipv4", "ipv6")
            for backend in service.backends_of(family)
        ]
        services.append({"name": service.name, "targets": targets})
    states = (*STATE_FIELDS, *agent_state.fields(config))
    fields = {"worker": WORKER_FIELDS, "service": SERVICE_FIELDS, "target": TARGET_FIELDS, "state": states}
    return {
        "slots": slots,
        "services": services,
        "fields": {key: list(names) for key, names in fields.items()},
        "beats": True,
        "clients_elsewhere": True,
        "clients": [[service.name, kind] for service in config.services for kind in _kinds(service)],
    }


def _kinds(service):
    """Return the kinds of numbers per client that the limits of a service need."""
    limits = service.limits
    limit_of = {client_tables.HELD: limits.connections_per_client, client_tables.RATE: limits.rate_per_client}
    return [kind for kind, limit in limit_of.items() if limit and not service.in_kernel]


class Region:
    """The shared memory of one generation. ``record`` is from describe(); without ``fd`` a new region is created.

    Rows 0 to slots - 1 belong to the workers. Row ``slots`` is the supervisor's: open sessions of other generations.
    The cells of a field are contiguous, in the order of services or targets.
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
        tables = record.get("clients", ())  # missing in a record of an early version
        self._tables = {tuple(key): number for number, key in enumerate(tables)}  # (service, kind): number
        rows_end = (self._rows + self._row_size * (self.slots + 1)) * CELL
        self._tables_at = -(-rows_end // mmap.PAGESIZE) * mmap.PAGESIZE
        size = self._table_at(self.slots, 0) if self._tables else rows_end
        self._beats = size // CELL if record.get("beats") else None  # missing in a record of an early version
        size += (self.slots + 1) * CELL if record.get("beats") else 0
        # The tables of what old generations have, {service: offset in bytes}; a record of version 0.1.0 has none.
        held = [service for service, kind in self._tables if kind == client_tables.HELD]
        self.elsewhere: dict[str, int] = {}
        for service in held if record.get("clients_elsewhere") else ():
            self.elsewhere[service] = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
            size = self.elsewhere[service] + client_tables.CELLS * CELL
        self.fd = os.memfd_create("l4proxy-shared", os.MFD_CLOEXEC) if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, size)
        else:
            os.set_inheritable(fd, False)
        self._map = mmap.mmap(self.fd, size)
        self.cells = memoryview(self._map).cast("q")
        self.cells[VERSION] = LAYOUT_VERSION

    def _place(self):
        """Return {(kind, field): offset in a row}, and set the size of a row."""
        offsets, offset = {}, 0
        for kind, count in (("worker", 1), ("service", len(self.services)), ("target", len(self.targets))):
            for name in self._fields[kind]:
                offsets[kind, name] = offset
                offset += count
        self._row_size = offset
        return offsets

    def cell(self, slot, kind, field, index=0):
        """Return the index of a cell: ``kind`` is worker, service or target, ``index`` numbers those of a kind."""
        return self._rows + slot * self._row_size + self.offsets[kind, field] + index

    def cells_of(self, slot, kind, index=0):
        """Return {field: cell} of one service or target in a row."""
        first, fields = self.cell(slot, kind, self._fields[kind][0], index), self._fields[kind]
        apart = len(self.targets) if kind == "target" else len(self.services)
        return dict(zip(fields, range(first, first + apart * len(fields), apart)))

    def row(self, slot):
        """Return all cells of a row as a list."""
        start = self._rows + slot * self._row_size
        return self.cells[start : start + self._row_size].tolist()

    def state_cell(self, field, target=0):
        """Return the index of a state cell; those of one field are contiguous."""
        return self._states[field] + target

    def state(self, field, target):
        """Return the value of a state cell."""
        return self.cells[self.state_cell(field, target)]

    @property
    def has_suspects(self):
        """Whether the region has the state "suspect", which early versions lack."""
        return "suspect" in self._fields["state"]

    def set_state(self, field, target, value):
        """Write a state cell; call advance() after the last one."""
        self.cells[self.state_cell(field, target)] = value

    def set_common_cause(self, family, on):
        """Set whether every return path of a family is broken (only the checker does)."""
        self.cells[COMMON_CAUSE_IPV4 if family == "ipv4" else COMMON_CAUSE_IPV6] = int(on)

    def common_causes(self):
        """Return the families in which every return path is broken."""
        flags = {"ipv4": COMMON_CAUSE_IPV4, "ipv6": COMMON_CAUSE_IPV6}
        return [family for family, cell in flags.items() if self.cells[cell]]

    def probe_result(self, probe, target):
        """Return the result of a health probe ("server" or "path"): "yes", "no: REASON" or "not asked"."""
        verdict = self.state(probe, target)
        if verdict == UNANSWERED:
            return f"no: {probe_results.name(self.state(f'{probe}_errno', target))}"
        return "yes" if verdict == ANSWERED else "not asked"

    def advance(self, epoch):
        """Increment an epoch, so that readers read the states again."""
        self.cells[epoch] += 1

    def total(self, kind, field, index=0):
        """Return the sum of a cell over all rows."""
        return sum(self.cells[self.cell(slot, kind, field, index)] for slot in range(self.slots + 1))

    def sessions(self, slot):
        """Return the number of open sessions of a worker."""
        first = self.cell(slot, "service", "sessions")
        return sum(self.cells[first : first + len(self.services)])

    def latest(self, field, target):
        """Return the greatest value of a target's cell over all rows."""
        return max(self.cells[self.cell(slot, "target", field, target)] for slot in range(self.slots + 1))

    def latest_of_all(self, field):
        """Return latest() of every target; all 0 if the record, of an earlier version, lacks the field."""
        count = len(self.targets)
        if ("target", field) not in self.offsets:
            return [0] * count
        starts = [self.cell(slot, "target", field) for slot in range(self.slots + 1)]
        return list(map(max, *(self.cells[start : start + count].tolist() for start in starts)))

    def first_target(self, service, family):
        """Return the number of the first target of a service in a family, None if it has none."""
        return self._first_targets.get((service, family))

    def service_number(self, name):
        """Return the number of a service, its index among the cells of a field."""
        return self._service_numbers[name]

    @cached_property
    def targets_of(self):
        """The targets of each backend: {(service, backend): {family: number}}."""
        found: dict[tuple[str, str], dict[str, int]] = {}
        for number, (service, backend, family) in enumerate(self.targets):
            found.setdefault((service, backend), {})[family] = number
        return found

    def inherit(self, other, services):
        """Copy the states of targets that ``other`` has as well, with the same address and port.

        What no health check or agent of ``services`` (config) will correct is not copied.
        """
        places = {target: number for number, target in enumerate(other.places)}
        common = [name for name in self._fields["state"] if name in other.record["fields"]["state"]]
        of_agents = [name for name in common if name in agent_state.FIELDS]
        of_checks = [name for name in common if name not in of_agents]
        copied = {
            service.name: of_checks * service.checked + of_agents * bool(service.health.agent) for service in services
        }
        for number, target in enumerate(self.places):
            for field in copied[target[0]] if target in places else ():
                self.set_state(field, number, other.state(field, places[target]))

    def carry(self, other):
        """Copy the gauges and the numbers per client of each worker from the region of the generation before.

        A worker that goes on to this region counts its sessions anew. Until it does, limits see what it has open.
        """
        for kind, names, others in (
            ("service", self.services, other.services),
            ("target", self.targets, other.targets),
        ):
            for field in (name for name in self._fields[kind] if name in GAUGES):
                for slot in range(self.slots):
                    start = other.cell(slot, kind, field)
                    numbers = dict(zip(others, other.cells[start : start + len(others)].tolist()))
                    for index, name in enumerate(names):
                        if numbers.get(name):
                            self.cells[self.cell(slot, kind, field, index)] = numbers[name]
        for key in self._tables.keys() & other._tables.keys():
            for slot in range(self.slots):
                self._copy_table(
                    self._table_at(slot, self._tables[key]), other, other._table_at(slot, other._tables[key])
                )

    def _copy_table(self, start, other, its_start):
        """Copy a table of another region."""
        for at, end in client_tables.pages_in_use(other.fd, its_start):
            self._map[start + at - its_start : start + end - its_start] = other._map[at:end]

    @property
    def places(self):
        """The (service, backend, family, address, port) of each target."""
        return [
            (service["name"], *(target[key] for key in ("backend", "family", "address", "port")))
            for service in self.record["services"]
            for target in service["targets"]
        ]

    def _table_at(self, slot, number):
        """Return the offset of a table in bytes."""
        return self._tables_at + (slot * len(self._tables) + number) * client_tables.CELLS * CELL

    def client_numbers(self, slot, service, kind):
        """Return the ClientNumbers of a worker slot; unshared ones if the record (of an earlier version) has none."""
        if (service, kind) not in self._tables:
            return client_tables.unshared()
        number = self._tables[service, kind]
        tables = [
            client_tables.ClientTable(self.cells, self._table_at(one, number) // CELL) for one in range(self.slots)
        ]
        if kind != client_tables.HELD or service not in self.elsewhere:
            return client_tables.ClientNumbers(tables, tables[slot])
        return client_tables.ClientNumbers(
            tables, tables[slot], self.elsewhere_table(service), self.cells, CLIENTS_ELSEWHERE
        )

    def elsewhere_table(self, service):
        """Return the supervisor's table of the connections that clients of a service have in old generations."""
        return client_tables.ClientTable(self.cells, self.elsewhere[service] // CELL)

    def held(self, service, slots):
        """Yield (key, number) of the clients that have connections of a service in these worker slots."""
        number = self._tables.get((service, client_tables.HELD))
        if number is None:
            return
        index = self.service_number(service)
        for slot in slots:
            if self.cells[self.cell(slot, "service", "sessions", index)]:
                yield from client_tables.entries(self.fd, self._table_at(slot, number))

    def beat_cell(self, slot):
        """Return the index of the heartbeat cell of a worker (``slots``: of the checker), None if there is none."""
        return None if self._beats is None else self._beats + slot

    def beat(self, slot):
        """Return the time of the last heartbeat of a slot in monotonic seconds, None if there was none."""
        cell = self.beat_cell(slot)
        return self.cells[cell] / 1000 or None if cell is not None else None

    def reset_gauges(self, slot):
        """Set the gauges of a slot to 0; a new worker does this, because its predecessor may have died."""
        for (_service, kind), number in self._tables.items():
            if kind == client_tables.HELD:  # frees the pages, which then read as zeros
                self._map.madvise(mmap.MADV_REMOVE, self._table_at(slot, number), client_tables.CELLS * CELL)
        for kind, count in (("worker", 1), ("service", len(self.services)), ("target", len(self.targets))):
            for field in self._fields[kind]:
                if field in GAUGES:
                    start = self.cell(slot, kind, field)
                    self.cells[start : start + count] = memoryview(bytes(count * CELL)).cast("q")

    def close(self):
        """Unmap and close the memory."""
        self.cells.release()
        self._map.close()
        os.close(self.fd)
