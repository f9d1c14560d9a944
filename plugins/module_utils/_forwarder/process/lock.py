# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One forwarder for each runtime directory: a record lock on a file in it (fcntl(2), F_SETLK).

Such a lock belongs to a process. It is kept over exec while the descriptor stays open, ends with the process, however
that ends, and is not inherited by a fork: workers that drain keep nobody from starting. The kernel drops it when the
process closes *any* descriptor of the file, so the file is opened here and nowhere else in the supervisor.
"""

from __future__ import annotations

import fcntl
import os
import struct

from ..admin import runtime_file

NAME = "forwarder.lock"
_FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, pid


class Held(Exception):
    """Another process has the lock; the message is one sentence."""


class Lock:
    """The lock of one directory; ``fd`` is of the program before this one, which was the same process."""

    def __init__(self, directory, fd=None):
        self.fd = fd
        self._directory = directory
        self._path = os.path.join(directory, NAME)

    def take(self):
        """Take the lock, or see that the file is still the one that is locked; raise Held or OSError."""
        if self.fd is not None and _is_at(self.fd, self._path):
            os.set_inheritable(self.fd, False)
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an earlier version may have closed another one
            return
        os.makedirs(self._directory, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            pid = _holder(fd)
            os.close(fd)
            who = f" (pid {pid})" if pid else ""
            raise Held(
                f"another forwarder{who} runs with the runtime directory {self._directory}; stop it first,"
                " or give this one a directory of its own in $RUNTIME_DIRECTORY"
            ) from None
        if self.fd is not None:
            os.close(self.fd)
        self.fd = fd

    def release(self):
        """Let another forwarder start; no more is locked."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def descriptors(self):
        """Return the descriptor to hand over, which no child may keep."""
        return [] if self.fd is None else [self.fd]


def holder(directory):
    """Return the pid of the forwarder of a runtime directory, None where none has the lock or nobody can tell."""
    try:
        fd = os.open(os.path.join(directory, NAME), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        pid = _holder(fd)
    finally:
        os.close(fd)
    return pid if pid and runtime_file.start_time(pid) is not None else None


def _holder(fd):
    wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        kind, _whence, _start, _length, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, wanted))
    except (OSError, struct.error):
        return None
    return pid if kind != fcntl.F_UNLCK and pid > 0 else None


def _is_at(fd, path):
    """Whether ``path`` still leads to the open file ``fd``."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False
