# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Notice at once that a file was replaced, by inotify(7): its directory is watched, its parent while that is missing.

systemd removes and creates the directory with its service. Python has no inotify, so libc is called with ctypes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct

# linux/inotify.h
IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
IN_DELETE_SELF, IN_MOVE_SELF, IN_IGNORED, IN_Q_OVERFLOW = 0x400, 0x800, 0x8000, 0x4000
IN_ONLYDIR, IN_DONT_FOLLOW = 0x1000000, 0x2000000
OF_FILE = IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE
OF_DIRECTORY = IN_DELETE_SELF | IN_MOVE_SELF
# Events of a watch itself, which have no name.
SELF = OF_DIRECTORY | IN_IGNORED | IN_Q_OVERFLOW
EVENT = struct.Struct("=iIII")  # struct inotify_event: watch, mask, cookie, length of the name that follows
BUFFER = 1 << 16


class FileWatch:
    """``descriptor`` becomes readable when the file may have changed, or one of ``others`` in its directory (names).

    It is None if the kernel gives no watch.
    """

    def __init__(self, path: str, *others: str) -> None:
        self._directory, name = os.path.split(os.path.abspath(path))
        self._names = {name, *others}
        self._libc = ctypes.CDLL(None)
        self._watch, self._parent = -1, -1
        made = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self.descriptor: int | None = made if made >= 0 else None
        self.renew()

    def renew(self) -> bool:
        """Watch the directory if it is not watched. Returns whether it was not and is now."""
        if self._watch >= 0 or self.descriptor is None:
            return False
        if self._parent < 0:
            parent, _name = os.path.split(self._directory)
            self._parent = self._add(parent, IN_CREATE | IN_MOVED_TO)
        # After the parent, so that a directory that is made in between is not missed.
        self._watch = self._add(self._directory, OF_FILE | OF_DIRECTORY)
        if self._watch >= 0 and self._parent >= 0:
            self._libc.inotify_rm_watch(self.descriptor, self._parent)
            self._parent = -1
        return self._watch >= 0

    def changed(self) -> bool:
        """Whether the file may have changed since the last call."""
        changed = False
        for watch, mask, name in self._events():
            if mask & IN_Q_OVERFLOW:
                changed = True
            elif watch == self._watch:
                changed = changed or bool(mask & SELF) or name in self._names
                if mask & SELF:
                    self._forget(moved=bool(mask & IN_MOVE_SELF))
            elif watch == self._parent and mask & IN_IGNORED:
                self._parent = -1
        return self.renew() or changed

    def close(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def _forget(self, moved: bool) -> None:
        if moved and self.descriptor is not None:
            self._libc.inotify_rm_watch(self.descriptor, self._watch)
        self._watch = -1

    def _add(self, path: str, mask: int) -> int:
        added = self._libc.inotify_add_watch(self.descriptor, os.fsencode(path), mask | IN_ONLYDIR | IN_DONT_FOLLOW)
        return int(added)

    def _events(self) -> list[tuple[int, int, str]]:
        """(watch, mask, name) of all events that wait."""
        found = []
        while self.descriptor is not None:
            data = b""
            with contextlib.suppress(BlockingIOError):
                data = os.read(self.descriptor, BUFFER)
            if not data:
                break
            start = 0
            while start < len(data):
                watch, mask, _cookie, length = EVENT.unpack_from(data, start)
                start += EVENT.size + length
                found.append((watch, mask, os.fsdecode(data[start - length : start].rstrip(b"\0"))))
        return found
