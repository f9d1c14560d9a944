# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The counters of kernel services, in a file that the forwarder shows: since they exist, whatever happens meanwhile.

``datapath.json`` in /run/l4proxy-keeper:
{"schema": 1, "time": seconds of the epoch, "open_time": the same, of ``open``, or null,
 "services": {"web": {"refused": {cause: int},
                      "backends": {"b": {"connections": int, "open": int or null, "bytes_in": int, ...}}}},
 "dropped": {cause: int}, "log": {"overruns": int, "lines_dropped": int},
 "counters": {name in nftables: [packets, bytes, packets in nftables, bytes in nftables, identity in nftables]},
 "boot": the kernel's boot id}
The kernel's counters begin again when somebody removes the table, so the file has totals. ``counters`` also has what
the kernel's were when they were added up: a keeper that starts adds what has come since. A copy in /var/lib/l4proxy,
written every SAVE seconds and when the keeper stops, outlives a reboot.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..datapath import counters
from ..datapath.render import CAUSES, counter_name
from ..document.kernel_service import KernelService
from ..host import files

SCHEMA = 1
NAME = "datapath.json"
Total = tuple[int, int, int, int, str]
LOG = ("overruns", "lines_dropped")
SAVE = 60.0
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def add_up(totals: Mapping[str, Total], readings: Mapping[str, counters.Reading]) -> dict[str, Total]:
    """The totals after the kernel's counters have these values. One with another identity, or a smaller value, began
    again. One without a value keeps its total: it is not in the table at the moment.
    """
    result = dict(totals)
    for name, (packets, size, identity) in readings.items():
        sum_packets, sum_size, seen_packets, seen_size, known = totals.get(name, (0, 0, 0, 0, identity))
        if identity != known or packets < seen_packets or size < seen_size:
            seen_packets = seen_size = 0
        result[name] = (sum_packets + packets - seen_packets, sum_size + size - seen_size, packets, size, identity)
    return result


class CountersFile:
    """``path`` is None if no file is wanted, ``saved`` if no copy is; ``clock`` returns seconds of the epoch, ``boot``
    the kernel's boot id.
    """

    def __init__(
        self,
        path: str | None = None,
        clock: Callable[[], float] = time.time,
        saved: str | None = None,
        boot: Callable[[], str | None] = lambda: files.read(BOOT_ID),
    ) -> None:
        self._path, self._clock, self._saved, self._boot = path, clock, saved, (boot() or "").strip()
        self._totals: dict[str, Total] = {}
        self._log = dict.fromkeys(LOG, 0)
        self._open: Mapping[tuple[str, str], int] | None = None
        self._open_time: float | None = None
        self._text = ""
        self._save_at = 0.0
        self._saving: threading.Thread | None = None
        self._not_saved: OSError | None = None

    def load(self) -> None:
        """Continue the counts of the previous keeper, also of one before a reboot; ignore a file that is invalid."""
        for path in filter(None, (self._path, self._saved)):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                data = json.loads(files.read(path) or "{}")
                if data.get("schema") == SCHEMA:
                    totals = {str(name): _total(*total) for name, total in data["counters"].items()}
                    if data.get("boot") != self._boot:  # the kernel's counters are others, whatever their identity is
                        totals = {name: (*total[:4], "of an earlier boot") for name, total in totals.items()}
                    self._totals, self._log = totals, {name: int(data["log"][name]) for name in LOG}
                    return

    def save(self) -> None:
        """Copy the file to where it outlives a reboot. OSError if it cannot be written."""
        if self._saving:
            self._saving.join()
        if self._saved and self._text:
            files.write(self._saved, self._text)

    def _save_in_thread(self, path: str, text: str) -> None:
        try:
            files.write(path, text)
        except OSError as error:
            self._not_saved = error  # update() raises it

    def set_open(self, opened: Mapping[tuple[str, str], int]) -> None:
        """Store the number of open connections, by names of service and backend."""
        self._open, self._open_time = opened, self._clock()

    def add_to_log(self, overruns: int, lines_dropped: int) -> None:
        """Count how often the kernel has dropped events, and lines that were not written."""
        for name, number in zip(LOG, (overruns, lines_dropped)):
            self._log[name] += number

    def update(self, services: Iterable[KernelService], readings: Mapping[str, counters.Reading]) -> None:
        """Add up the kernel's counters, and write the file. OSError if it, or the last copy, cannot be written."""
        services = list(services)
        names = _names(services)
        totals = add_up(self._totals, readings).items()
        self._totals = {name: total for name, total in totals if name in names}
        summed = {name: total[:2] for name, total in self._totals.items()}
        shown = counters.by_service(services, summed)
        for name, service in shown.items():
            for backend, values in service["backends"].items():
                values["open"] = None if self._open is None else self._open.get((name, backend), 0)
        now = self._clock()
        data: dict[str, Any] = {
            "schema": SCHEMA,
            "time": round(now, 3),
            "open_time": self._open_time and round(self._open_time, 3),
            "services": shown,
            "dropped": counters.dropped(summed),
            "log": self._log,
            "counters": self._totals,
            "boot": self._boot,
        }
        self._text = json.dumps(data) + "\n"
        if self._path:
            files.write(self._path, self._text)
        if self._saved and now >= self._save_at and not (self._saving and self._saving.is_alive()):
            self._save_at = now + SAVE
            self._saving = threading.Thread(target=self._save_in_thread, args=(self._saved, self._text), daemon=True)
            self._saving.start()
        if self._not_saved:
            error, self._not_saved = self._not_saved, None
            raise error

    def remove(self) -> None:
        """Without services there are no counters."""
        if self._saving:
            self._saving.join()
        for path in filter(None, (self._path, self._saved)):
            files.remove(path)
        self._totals, self._text = {}, ""


def _total(packets: Any, size: Any, seen_packets: Any, seen_size: Any, identity: Any) -> Total:
    return int(packets), int(size), int(seen_packets), int(seen_size), str(identity)


def _names(services: Iterable[KernelService]) -> set[str]:
    """The names of all counters that these services may have."""
    names = set(counters.COMMON)
    for service in services:
        names |= {counter_name(cause, service) for cause in CAUSES}
        names |= {counter_name(kind, service, server) for kind in ("new", "in", "out") for server in service.servers}
    return names
