# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock that allows only one forwarder per runtime directory: a record lock on a file (fcntl(2), F_SETLK).

Such a lock belongs to a process. It lasts over exec as long as the descriptor stays open, and ends with the process. A
fork does not inherit it, so draining workers do not keep another forwarder from starting. The kernel releases it when
the process closes *any* descriptor of the file, so the supervisor opens the file nowhere else.
"""

from __future__ import annotations

import fcntl
import os
import struct

from ..admin import runtime_file

NAME = "forwarder.lock"
_FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, pid


class Held(Exception):
    """Another process holds the lock; the message is one sentence."""


class Lock:
    """The lock of one directory; ``fd`` is the descriptor that the previous program of this process left open."""

    def __init__(self, directory, fd=None):
        self.fd = fd
        self._directory = directory
        self._path = os.path.join(directory, NAME)

    def take(self):
        """Take the lock. If it is held, check that the file is still at its path. Raise Held or OSError."""
        if self.fd is not None and _is_at(self.fd, self._path):
            os.set_inheritable(self.fd, False)
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an earlier version may have lost it
            return
        os.makedirs(self._directory, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            pid = _holder(fd)
            os.close(fd)
            other = f" (pid {pid})" if pid else ""
            raise Held(
                f"another forwarder{other} runs with the runtime directory {self._directory}; stop it first,"
                " or set $RUNTIME_DIRECTORY to another directory for this one"
            ) from None
        if self.fd is not None:
            os.close(self.fd)
        self.fd = fd

    def take_for(self, serving, log):
        """Take the lock; if this forwarder is ``serving`` already, another one that holds it is only logged."""
        try:
            self.take()
        except Held as error:
            if not serving:
                raise
            log.event("lock not taken", level="error", reason=str(error))
        except OSError as error:  # the directory is full, read-only or another user's
            log.event("lock not taken", level="warning", reason=str(error))

    def release(self):
        """Release the lock, so that another forwarder can start."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def descriptors(self):
        """Return the file descriptor, which is handed over and which forked children must close."""
        return [] if self.fd is None else [self.fd]


def holder(directory):
    """Return the pid of the forwarder of a runtime directory; None if no process holds the lock or it is unknown."""
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
    """Whether ``path`` is still the open file ``fd``."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False
