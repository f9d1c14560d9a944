# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runtime file: what the running forwarder has loaded, to be compared with what is installed.

{"schema": 1, "pid": int, "started": int (clock ticks after boot, proc_pid_stat(5) field 22), "generation": int,
 "version": str, "config": {"path", "sha256", and "error" if it is the last good one: why the other cannot be loaded},
 "archive": {"path", "sha256"} or null when it runs from a directory,
 "failed": {name of a socket: why it could not be bound},
 "loaded_at": "2026-01-31T12:00:00Z",
 "last_reload": {"attempt": int (0: the start), "ok": bool, "error": str or null, "at": time,
  "in_place": bool (whether the workers took the config), "new_processes_because": str or null (why they did not)}}

Everything but ``last_reload`` describes the live generation: a failed reload does not change it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time

from ..._shared import environment
from ..._shared.paths import RUNTIME_DIRECTORY

SCHEMA = 1
NAME = "forwarder.json"


def directory(environ=None):
    """Return the runtime directory: systemd's $RUNTIME_DIRECTORY (the first of its list), or the default."""
    environ = os.environ if environ is None else environ
    return environ.get("RUNTIME_DIRECTORY", "").split(":")[0] or RUNTIME_DIRECTORY


def path(runtime_dir=None):
    """Return the path of the runtime file."""
    return os.path.join(runtime_dir or directory(), NAME)


def admin_socket(runtime_dir=None):
    """Return the path of the admin socket, if the config names no other one."""
    return os.path.join(runtime_dir or directory(), "admin.sock")


def timestamp(at=None):
    """Return a time in seconds of the epoch (None: now) in UTC, RFC 3339, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def sha256(data):
    """Return the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(name):
    """Return the SHA-256 of a file in hexadecimal; raise OSError."""
    digest = hashlib.sha256()
    with open(name, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def running_archive():
    """Return {"path", "sha256"} of the zip archive this code was imported from, None if it was a directory."""
    path_of_archive = environment.running_archive()
    return {"path": path_of_archive, "sha256": sha256_file(path_of_archive)} if path_of_archive else None


def write(document, name):
    """Write the runtime file, readable by all; raise OSError.

    The file is replaced atomically. If there is no space for a second file, the old one is overwritten; a reader that
    finds it half written has to read again.
    """
    text = json.dumps(document, indent=1) + "\n"
    temporary = f"{name}.{os.getpid()}.new"
    try:
        os.makedirs(os.path.dirname(name), exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, name)
    except OSError:
        remove(temporary)
        if not _overwrite(name, text):
            raise


def _overwrite(name, text):
    """Overwrite an existing file; return whether that succeeded."""
    try:
        with open(name, "r+", encoding="utf-8") as stream:
            stream.write(text)
            stream.truncate()
    except OSError:
        return False
    return True


def remove(name):
    """Remove a file, if it is there and can be removed."""
    try:
        os.unlink(name)
    except OSError:
        pass


def read(name):
    """Return the document in a runtime file, None if there is no valid one; raise OSError if it cannot be read."""
    try:
        with open(name, encoding="utf-8") as stream:
            document = json.load(stream)
    except FileNotFoundError:
        return None
    except ValueError:
        return None
    return document if isinstance(document, dict) and document.get("schema") == SCHEMA else None


def start_time(pid):
    """Return when a process started, in clock ticks after boot; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            # The command (field 2) is in parentheses and may contain anything; field 3 is what follows the last one.
            fields = stream.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def alive(document):
    """Whether the process that wrote a runtime file still runs, and not another process with the same pid."""
    started = start_time(document.get("pid"))
    return started is not None and started == document.get("started")
