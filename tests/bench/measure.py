# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""CPU time and memory of processes and of a whole run, and the statistics of several rounds."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


def family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                children.setdefault(int(_stat(entry)[1]), []).append(int(entry.name))
            except OSError:
                continue  # it has ended meanwhile
    found, new = [], [pid]
    while new:
        found += new
        new = [child for parent in new for child in children.get(parent, ())]
    return found


def _stat(entry: Path) -> list[str]:
    """Return the fields of proc_pid_stat(5) from the third on; the second, in parentheses, may contain anything."""
    return (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


def listing(pid: int, *names: str) -> list[str]:
    """Return the rows of tables in /proc/PID/net: those of the network namespace of a process."""
    return [row for name in names for row in (PROC / str(pid) / "net" / name).read_text("ascii").splitlines()[1:]]


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time of processes, user and system, in seconds."""
    total = 0
    for pid in pids:
        fields = _stat(PROC / str(pid))
        total += int(fields[11]) + int(fields[12])  # utime and stime, fields 14 and 15
    return total * TICK


def memory(pids: Iterable[int]) -> int:
    """Return the memory of processes in bytes; shared pages are divided among them (Pss)."""
    total = 0
    for pid in pids:
        for line in (PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


class Everything:
    """CPU time of this process, all that it starts from now on, and ksoftirqd. A kernel datapath has no own process.

    From cpu.stat of a control group (version 2) of its own: nanoseconds, and nothing of others on this machine. The
    kernel's work for packets runs in the process that sends or receives them, or in ksoftirqd. What else the kernel
    does in an idle CPU (timers, interrupts) is not in it.
    """

    def __init__(self) -> None:
        """Raise RuntimeError if this process may not have a control group."""
        mounts = [line.split() for line in (PROC / "self/mountinfo").read_text("utf-8").splitlines()]
        root = next((Path(row[4]) for row in mounts if row[row.index("-") + 1] == "cgroup2"), None)
        if root is None:
            raise RuntimeError("no file system of type cgroup2 is mounted; CPU time of the whole run needs one")
        rows = (PROC / "self/cgroup").read_text("utf-8").splitlines()
        self._outer = root / next(row[4:] for row in rows if row.startswith("0::/"))
        self._group = self._outer / f"l4proxy-bench-{os.getpid()}"
        self._softirqs = [entry / "schedstat" for entry in PROC.iterdir() if _name(entry).startswith("ksoftirqd/")]
        try:
            self._group.mkdir()
            self._move(self._group)
        except OSError as error:
            raise RuntimeError(f"cannot use the control group {self._group}: {error.strerror}") from None

    def _move(self, group: Path) -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")

    def cpu(self) -> float:
        """Return the CPU time until now, in seconds."""
        stat = dict(line.split() for line in (self._group / "cpu.stat").read_text("ascii").splitlines())
        softirqs = sum(int(path.read_text("ascii").split()[0]) for path in self._softirqs)
        return int(stat["usage_usec"]) / 1e6 + softirqs / 1e9

    def close(self) -> None:
        """Leave the control group and remove it; what was started in it has ended."""
        if self._group.exists():  # else this is the second call
            self._move(self._outer)
            self._group.rmdir()


def _name(entry: Path) -> str:
    try:
        return (entry / "comm").read_text("ascii", errors="replace")
    except OSError:
        return ""  # no process, or it has ended meanwhile


@dataclass(frozen=True)
class Sample:
    """One round: units a second, latencies in seconds (None: not of this work), CPU seconds a unit, bytes."""

    rate: float | None = None
    p50: float | None = None
    p99: float | None = None
    cpu_per_unit: float | None = None
    rss: float | None = None
    #: CPU seconds a unit of everything together: client, peer, server, and the kernel's work for each of them.
    total_per_unit: float | None = None
    #: Units that failed; a round with any is not a measurement of speed alone, and is shown.
    failed: float | None = None


FIELDS = tuple(Sample.__dataclass_fields__)


@dataclass(frozen=True)
class Figure:
    """Several rounds of one value: their median, and their spread as (most - least) / median."""

    median: float
    spread: float
    rounds: tuple[float, ...]


def figure(values: Sequence[float]) -> Figure:
    """Return the statistics of one value."""
    middle = statistics.median(values)
    spread = (max(values) - min(values)) / middle if middle else 0.0
    return Figure(middle, spread, tuple(values))


def figures(samples: Sequence[Sample]) -> dict[str, Figure]:
    """Return the statistics of every value of a measurement."""
    found = {}
    for name in FIELDS:
        values = [value for sample in samples if (value := getattr(sample, name)) is not None]
        if values:
            found[name] = figure(values)
    return found
