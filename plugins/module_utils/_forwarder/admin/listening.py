# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The listening sockets of the admin server and of the metrics server.

A socket has a name, "admin:PATH" or "metrics:ADDRESS:PORT", which is the same in every generation and version.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import stat
import struct

from ..loop import sockets
from . import runtime_file

BACKLOG = 32  # connections that the kernel queues
ADMIN, METRICS = "admin", "metrics"


class BindError(Exception):
    """The socket ``name`` cannot be bound. ``kind`` is ADMIN or METRICS; the message is one sentence."""

    def __init__(self, name, error):
        self.name, self.reason = name, sockets.describe(error)
        self.kind, _colon, where = name.partition(":")
        super().__init__(f"{self.kind}: cannot listen on {where}: {self.reason}")


def kind_of(name):
    """Return ADMIN or METRICS."""
    return name.partition(":")[0]


def path_of(name):
    """Return the path of an admin socket; None for a name of METRICS."""
    kind, _colon, where = name.partition(":")
    return where if kind == ADMIN else None


def names(config):
    """Return the names of the sockets that ``config`` asks for."""
    path = config.admin.socket or runtime_file.admin_socket()
    return [f"{ADMIN}:{path}", *([f"{METRICS}:{config.metrics.listen}"] if config.metrics.listen else [])]


def bind(name, config):
    """Return a new listening socket; raise BindError."""
    path = path_of(name)
    try:
        if path is not None:
            return _bind_path(path, config.admin.group)
        address, port = config.metrics.endpoint
        return sockets.listening_socket(address, port, backlog=BACKLOG, shared=False)
    except OSError as error:
        raise BindError(name, error) from None


def _bind_path(path, group):
    """Return a socket of mode 0660 at ``path``. It is renamed to ``path`` only when mode and group are set."""
    new = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind(new)
        os.chmod(new, 0o660)
        if group is not None:
            os.chown(new, -1, _group_id(group))
        sock.listen(BACKLOG)
        if os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):  # never replace another kind of file
            raise OSError(errno.EEXIST, path)
        os.rename(new, path)
    except OSError:
        sock.close()
        runtime_file.remove(new)
        raise
    return sock


def _group_id(group):
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise OSError(errno.ENOENT, f"there is no group {group}") from None


def is_lost(name):
    """Whether the path of an admin socket no longer leads to this process (removed, or taken by another one)."""
    path = path_of(name)
    if path is None:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(path)
            pid, _user, _group = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        except BlockingIOError:  # the backlog is full, so somebody does listen
            return False
        except OSError:
            return True
    return pid != os.getpid()
