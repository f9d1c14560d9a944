# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files, memory and CPU time of a process, from /proc."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def open_files(pid: int) -> list[str]:
    """The open files of a process: "socket:[inode]", "pipe:[inode]" or a path."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.append(os.readlink(entry))
    return found


def asleep(pid: int) -> bool:
    """Whether a process sleeps."""
    return _stat(pid)[0] == "S"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command; the state is the first."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()


def resident(pid: int) -> int:
    """Resident memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * 4096


def cpu_ticks(pid: int) -> int:
    """User and system time of a process in clock ticks of 10 ms."""
    fields = _stat(pid)
    return int(fields[11]) + int(fields[12])
