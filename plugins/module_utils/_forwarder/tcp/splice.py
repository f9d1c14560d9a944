# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bulk without copies: splice(2) between two sockets through a pipe, and the pool the pipes come from.

An ordinary user may pin fs.pipe-user-pages-soft pages in pipes (16,384 by default); beyond that F_SETPIPE_SZ is refused
and new pipes shrink to a page or two (pipe(7)). So the pool has a bound, and who gets no pipe goes on with recv and
send. A pipe that still holds bytes is never given to another connection.

Half of the bound goes to wide pipes, for a fifth less CPU a byte; the other half to small ones, four for a wide one, so
that many streams at once have some as well.
"""

from __future__ import annotations

import errno
import fcntl
import os

PIPE_SIZE = 256 * 1024  # bytes
WIDE = 4  # times that, for a wide one: 1 MiB is what fs.pipe-max-size allows an ordinary user
SPARE = 16  # empty pipes a pool keeps at hand; the others are closed when they come back
F_SETPIPE_SZ = 1031  # linux/fcntl.h; the fcntl module has it since Python 3.10
SOFT_LIMIT = "/proc/sys/fs/pipe-user-pages-soft"
DEFAULT_SOFT_LIMIT = 16384  # pages; PIPE_DEF_BUFFERS * INR_OPEN_CUR in linux/fs/pipe.c

_MOVE_NONBLOCK = 1 | 2  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK, linux/splice.h


def _find_splice():
    """Return function(source, target, count) -> bytes moved, raising OSError; None where there is no way to call it."""
    if hasattr(os, "splice"):
        native = os.splice
        return lambda source, target, count: native(source, target, count, None, None, _MOVE_NONBLOCK)
    return _splice_by_ctypes()  # Python 3.9


def _splice_by_ctypes():
    try:
        import ctypes

        function = ctypes.CDLL(None, use_errno=True).splice
    except (ImportError, OSError, AttributeError):
        return None
    function.restype = ctypes.c_ssize_t
    function.argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_uint,
    )

    def splice(source, target, count):
        moved = function(source, None, target, None, count, _MOVE_NONBLOCK)
        if moved < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))  # EAGAIN becomes BlockingIOError
        return moved

    return splice


splice = _find_splice()


class Pipe:
    """A pipe for ``size`` bytes, and the number of bytes that are in it."""

    __slots__ = ("held", "read_end", "size", "write_end")

    def __init__(self, size=PIPE_SIZE):
        """Make one; raise OSError when it cannot be had."""
        self.held = 0
        self.size = size
        self.read_end, self.write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if fcntl.fcntl(self.write_end, F_SETPIPE_SZ, size) < size:
                raise OSError(errno.EPERM, "the pipe is smaller than asked for")
        except OSError:
            self.close()
            raise

    def close(self):
        """Close both ends, with whatever is inside."""
        os.close(self.read_end)
        os.close(self.write_end)


class Pool:
    """Pipes of up to ``bound`` times PIPE_SIZE together, each lent to one direction of a connection at a time."""

    def __init__(self, bound):
        self.bound = bound if splice else 0
        self.lent = 0
        self.refused = 0  # how often a direction got none
        self._size = 0  # of all that there are, lent and spare, in PIPE_SIZE
        self._spare = []

    def take(self):
        """Return an empty pipe, the widest there is, or None when the bound is reached or the kernel refuses."""
        pipe = self._spare.pop() if self._spare else self._new(WIDE, self.bound // 2) or self._new(1, self.bound)
        if pipe is None:
            self.refused += 1
        else:
            self.lent += 1
        return pipe

    def _new(self, width, bound):
        if self._size + width > bound:
            return None
        try:
            pipe = Pipe(width * PIPE_SIZE)
        except OSError:  # EPERM: the user's share is used up; EMFILE, ENFILE, ENOMEM: the host's
            return None
        self._size += width
        return pipe

    def give_back(self, pipe):
        """Take a pipe back. One that holds bytes is closed: they belong to a connection that is over."""
        self.lent -= 1
        if pipe.held or len(self._spare) >= SPARE:
            self._close(pipe)
        elif pipe.size > PIPE_SIZE:
            self._spare.append(pipe)
        else:
            self._spare.insert(0, pipe)

    def _close(self, pipe):
        self._size -= pipe.size // PIPE_SIZE
        pipe.close()

    def close(self):
        """Close the spare ones."""
        while self._spare:
            self._close(self._spare.pop())


def bound(workers, descriptors):
    """Return how many small pipes each of ``workers`` may have: by the pages of a user, and by a process's descriptors.

    Three quarters of the pages, since the user has other pipes as well (the log, the probes of pip and cron); and at
    most an eighth of the descriptors, two for a pipe, because each of them is a client that could be served.
    """
    pages = soft_limit()
    by_pages = pages * 3 // 4 * os.sysconf("SC_PAGE_SIZE") // PIPE_SIZE // workers
    by_descriptors = descriptors // 16
    return by_descriptors if pages == 0 else min(by_pages, by_descriptors)


def soft_limit():
    """Return fs.pipe-user-pages-soft; 0 means no limit (proc(5))."""
    try:
        with open(SOFT_LIMIT, encoding="ascii") as stream:
            return int(stream.read())
    except (OSError, ValueError):  # a unit may hide /proc/sys: then the kernel's default is the best guess
        return DEFAULT_SOFT_LIMIT
