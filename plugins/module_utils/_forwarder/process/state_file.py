# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state file: what operators have said, and the counters, for a start after a stop, a crash or a reboot.

{"schema": 1, "written": "2026-01-31T12:00:00Z",
 "overrides": [[service, backend, {"state": "draining" or "maintenance", "weight": int}]] (overrides.py),
 "withdrawn": {"since": time, "reason": str} or null (version 0.1.0 does not have the key),
 "counters": {…} (saved_counters.py), "restarts": int, "reloads": {"ok": int, "failed": int}, "drain_memory_ended": int,
 "denied": [[service ("": all), network, its end or null, reason, since]] (ban_records.py), if there are any}

It is in systemd's $STATE_DIRECTORY; without one, nothing is stored. The directory belongs to the forwarder's user, so
everything in the file is checked before it is used. The log level is not stored: "debug" is for minutes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Mapping
from typing import Any

from ..._shared.integers import is_whole
from ..admin import runtime_file
from ..config.defaults import WEIGHT
from ..counters import saved_counters
from ..counters.shared_memory import ADMIN_STATES, READY
from . import ban_records

SCHEMA = 1
NAME = "state.json"
UNREAD = ".unread"  # after the name: a file that could not be used, kept for a person or a newer version
MOST_BYTES = 64 << 20  # 16,384 backends in both families have 5 MB
NUMBERS = ("restarts", "drain_memory_ended")


class Unusable(Exception):
    """The state file cannot be used; the message is a sentence without a subject."""


def directory(environ: Mapping[str, str]) -> str | None:
    """Return the state directory: systemd's $STATE_DIRECTORY (the first of its list), None if there is none."""
    return environ.get("STATE_DIRECTORY", "").split(":")[0] or None


# -- reading ---------------------------------------------------------------------------------------------------------


def read(path: str) -> dict[str, Any] | None:
    """Return the document of the state file, None if there is no file; raise Unusable or OSError."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(number, "rb") as stream:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise Unusable("is not a regular file")
        data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise Unusable(f"is longer than {MOST_BYTES} bytes")
    try:
        document = json.loads(data)
        if not isinstance(document, dict) or not is_whole(document.get("schema"), 0, saved_counters.HIGHEST):
            raise ValueError("it has no schema number")
    except (ValueError, RecursionError) as error:
        raise Unusable(f"is not a state file: {error}") from None
    if document["schema"] != SCHEMA:
        newer = " (a newer version has written it)" if document["schema"] > SCHEMA else ""
        raise Unusable(f"has schema {document['schema']}, and this version reads {SCHEMA}{newer}")
    try:
        _check(document)
    except ValueError as error:
        raise Unusable(f"is damaged: {error}") from None
    return document


def _check(document):
    """Raise ValueError if a value of the document is not what format() writes. Other keys are allowed."""
    if not isinstance(document.get("written"), str):
        raise ValueError("written: is not a time")
    if not isinstance(document.get("overrides"), list) or not all(map(_is_override, document["overrides"])):
        raise ValueError("overrides: are not [service, backend, {state, weight}]")
    withdrawn = document.get("withdrawn")
    if withdrawn is not None and not _is_withdrawal(withdrawn):
        raise ValueError("withdrawn: is not {since, reason}")
    saved_counters.check(document.get("counters"))
    ban_records.check_records(document.get("denied", []))
    reloads = document.get("reloads")
    reloads = reloads if isinstance(reloads, dict) else {}
    for key, value in [
        *((key, document.get(key)) for key in NUMBERS),
        *((f"reloads.{key}", reloads.get(key)) for key in ("ok", "failed")),
    ]:
        if not is_whole(value, 0, saved_counters.HIGHEST):
            raise ValueError(f"{key}: is not a number")


def _is_override(record):
    if not (isinstance(record, list) and [type(one) for one in record] == [str, str, dict]):
        return False
    override = record[2]
    is_state = "state" not in override or override["state"] in ADMIN_STATES[READY + 1 :]
    is_weight = "weight" not in override or is_whole(override["weight"], 1, WEIGHT.high)
    return bool(override) and is_state and is_weight


def _is_withdrawal(value):
    return isinstance(value, dict) and [type(value.get(key)) for key in ("since", "reason")] == [str, str]


def set_aside(path: str) -> str:
    """Rename a file that cannot be used, in place of an earlier one; return where it is now. Raise OSError."""
    os.replace(path, path + UNREAD)
    return path + UNREAD


# -- writing ---------------------------------------------------------------------------------------------------------


def write(document: Mapping[str, Any], path: str) -> int:
    """Write the state file, unless it has the same content already; return its size in bytes. Raise OSError.

    It is complete at any moment, also after a power failure. Two processes that write take turns.
    """
    text = json.dumps(document, separators=(",", ":"))
    lock = os.open(os.path.dirname(path), os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _has(path, text):
            _replace(path, f'{{"schema":{SCHEMA},"written":"{runtime_file.timestamp()}",\n{text[1:]}\n')
            os.fsync(lock)
    finally:
        os.close(lock)
    return len(text)


def _has(path, text):
    """Whether the file has this content; its first line, with the time, may differ."""
    with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as stream:
        stream.readline()
        return stream.read(len(text) + 1) == f"{text[1:]}\n"
    return False


def _replace(path, text):
    temporary = f"{path}.new"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o600), "w", encoding="ascii") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
