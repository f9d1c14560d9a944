# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lines for a reader that may be slow, such as the journal: writing them never blocks the process."""

from __future__ import annotations

import os
import socket
import stat
from collections import deque
from collections.abc import Callable
from typing import Any

PIPE_BUF = 4096  # bytes, linux/limits.h: such a write is atomic


def write_lines(lines: deque[bytes], write: Callable[[bytes], int]) -> bool:
    """Write and remove as many as ``write`` takes, at most PIPE_BUF bytes at a time; return whether that was all."""
    while lines:
        piece = lines.popleft()
        while lines and len(piece) + len(lines[0]) <= PIPE_BUF:
            piece += lines.popleft()
        taken = write(piece)
        if taken < len(piece):
            lines.appendleft(piece[taken:])
            return False
    return True


def non_blocking_writer(fd: int) -> Callable[[bytes], int]:
    """Return a function(bytes) -> number of bytes written, 0 where a plain write would block."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):  # the journal
        sock = socket.socket(fileno=os.dup(fd))
        return lambda data: _taken(sock.send, data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    if not stat.S_ISREG(mode):
        fd = _own_description(fd)
    return lambda data: _taken(os.write, fd, data)


def _own_description(fd: int) -> int:
    """Open a pipe or terminal again, so that O_NONBLOCK does not affect the processes that share it."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:  # opened by another user: it has to be set on the shared description
        os.set_blocking(fd, False)
        return fd


def _taken(write: Callable[..., int], *arguments: Any) -> int:
    try:
        return write(*arguments)
    except BlockingIOError:
        return 0
    except OSError:  # the reader has closed it: work goes on without a log
        return sum(len(part) for part in arguments if isinstance(part, bytes))
