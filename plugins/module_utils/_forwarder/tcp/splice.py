# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""splice(2), which moves bytes between two sockets through a pipe without copying them, and the pool of pipes.

An ordinary user may have fs.pipe-user-pages-soft pages in pipes (16,384 by default); beyond that, F_SETPIPE_SZ is
refused and new pipes have only a page or two (pipe(7)). So the pool has a bound, and a stream that gets no pipe uses
recv and send. A pipe that still holds bytes is never given to another connection.

Half of the bound is for wide pipes, which need a fifth less CPU per byte. The other half is for small ones, four in the
place of a wide one, so that many streams at once get some.
"""

from __future__ import annotations

import errno
import fcntl
import os

PIPE_SIZE = 256 * 1024  # bytes
WIDE = 4  # times PIPE_SIZE: a wide pipe has 1 MiB, which is what fs.pipe-max-size allows an ordinary user
SPARE = 16  # empty pipes that a pool keeps; more are closed when they are returned
F_SETPIPE_SZ = 1031  # linux/fcntl.h; in the fcntl module since Python 3.10
SOFT_LIMIT = "/proc/sys/fs/pipe-user-pages-soft"
DEFAULT_SOFT_LIMIT = 16384  # pages; PIPE_DEF_BUFFERS * INR_OPEN_CUR in linux/fs/pipe.c

_MOVE_NONBLOCK = 1 | 2  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK, linux/splice.h


def _find_splice():
    """Return function(source, target, count) -> bytes moved, which raises OSError; None where splice is missing."""
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
    """A pipe for ``size`` bytes, which now contains ``held`` bytes."""

    __slots__ = ("held", "read_end", "size", "write_end")

    def __init__(self, size=PIPE_SIZE):
        """Open a pipe; raise OSError."""
        self.held = 0
        self.size = size
        self.read_end, self.write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if fcntl.fcntl(self.write_end, F_SETPIPE_SZ, size) < size:
                raise OSError(errno.EPERM, "the kernel made a smaller pipe than requested")
        except OSError:
            self.close()
            raise

    def close(self):
        """Close both ends; bytes inside are lost."""
        os.close(self.read_end)
        os.close(self.write_end)


class PipePool:
    """Pipes of up to ``bound`` times PIPE_SIZE in total, each lent to one stream at a time."""

    def __init__(self, bound):
        self.bound = bound if splice else 0
        self.lent = 0
        self.refused = 0  # how often take() returned None
        self._size = 0  # of all pipes, lent and spare, in units of PIPE_SIZE
        self._spare: list[Pipe] = []

    def take(self) -> Pipe | None:
        """Return an empty pipe, a wide one if possible; None at the bound or where the kernel refuses."""
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
        except OSError:  # EPERM: this user's pages are used up; EMFILE, ENFILE, ENOMEM: out of descriptors or memory
            return None
        self._size += width
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Take a pipe back. One that holds bytes is closed: they belong to a connection that has ended."""
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
        """Close the spare pipes."""
        while self._spare:
            self._close(self._spare.pop())


def most_pipes(workers: int, descriptors: int) -> int:
    """Return how many small pipes each of ``workers`` may have, with this limit of ``descriptors`` for each process.

    They use at most three quarters of the user's pages, which other pipes need as well, and at most an eighth of the
    descriptors (a pipe has two), which clients need as well.
    """
    pages = soft_limit()
    by_pages = pages * 3 // 4 * os.sysconf("SC_PAGE_SIZE") // PIPE_SIZE // workers
    by_descriptors = descriptors // 16
    return by_descriptors if pages == 0 else min(by_pages, by_descriptors)


def soft_limit() -> int:
    """Return fs.pipe-user-pages-soft; 0 means no limit (proc(5))."""
    try:
        with open(SOFT_LIMIT, encoding="ascii") as stream:
            return int(stream.read())
    except (OSError, ValueError):  # a unit may hide /proc/sys: assume the kernel's default
        return DEFAULT_SOFT_LIMIT
