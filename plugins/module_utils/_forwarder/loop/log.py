# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The log: one JSON object or logfmt record per line. Writing it never blocks the forwarder.

Lines wait while the loop runs its callbacks. Then flush() writes them, at most PIPE_BUF bytes at a time: such a write
to a pipe or the journal's socket is atomic (pipe(7)), so supervisor and workers can share one. If the reader is too
slow, lines are dropped, and the next line that gets through says how many. Warnings and errors of one event are limited
to MOST_A_SECOND, so that they leave room for other lines.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..._shared import line_output

MAX_WAITING = 1000  # lines, about 300 kB: kept while the reader is slow
LONGEST_TEXT, LONGEST_LIST = 2000, 50  # characters or entries of one value of an event; the rest is cut
MOST_A_SECOND = 20  # warnings or errors of one event; the next second logs how many were suppressed
LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}
REPEAT = 10.0  # seconds between two lines that say the same (Repeats)
RETRY = 0.5  # seconds until an idle loop should flush() again

_encoder = json.JSONEncoder(separators=(",", ":"), default=str)


def _fast_json():
    """Return function(value) -> JSON text, equal to that of JSONEncoder.encode().

    encode() makes a new C encoder for each value; this one is made once.
    """
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # an interpreter without the C part of json
        return _encoder.encode
    quote = json.encoder.encode_basestring_ascii
    encode = make(None, str, quote, None, ":", ",", False, False, True)
    return lambda value: "".join(encode(value, 0))


_json = _fast_json()
_PLACEHOLDER = secrets.token_hex(16)  # for a value that is not known yet; needs no quotes in any format
_PLAIN = re.compile(r"[!#-<>-\[\]-~]+\Z")  # printable ASCII without space, '"', '=' and '\\'


class Log:
    """Writes to the file descriptor ``fd``; the fields ``base`` are in every line.

    ``format`` is json or logfmt; events below ``level`` are not logged.
    """

    def __init__(self, fd=1, format="json", level="info", **base):
        self._write = line_output.non_blocking_writer(fd)
        self._base = base
        self.waiting: deque[bytes] = deque()  # lines that are not written yet
        self._unreported = 0  # dropped lines that the log does not mention yet
        self._second = 0
        self._warnings = {}  # of this second, by event
        self.dropped = 0
        self.set_format(format)
        self.set_level(level)

    def set_format(self, format: str) -> None:
        """Use json or logfmt from now on; a kind() keeps the format with which it was made."""
        self._encode, self._spell = ENCODERS[format]

    def set_base(self, **base: Any) -> None:
        """Replace fields that are in every line; a kind() keeps those with which it was made."""
        self._base.update(base)

    def set_level(self, level: str) -> None:
        """Log events of ``level`` and above from now on."""
        self.level = level
        self._threshold = LEVELS[level]

    def event(self, event: str, level: str = "info", **fields: Any) -> None:
        """Log ``event`` (a short name) with its fields, which are JSON values."""
        rank = LEVELS[level]
        if rank < self._threshold or (rank >= LEVELS["warning"] and not self._admitted(event)):
            return
        if self._has_room():
            self._append(event, level, fields)

    def kind(self, event: str, names: Sequence[str], **constant: object) -> Callable[[Sequence], None]:
        """Return a fast function(values) that logs ``event`` at level info, for an event that is very frequent.

        ``values`` are those of the fields ``names``, in that order. The fields ``constant`` are encoded only once.
        """
        line = {"event": event, "level": "info", "time": _PLACEHOLDER, **self._base, **constant}
        line.update(dict.fromkeys(names, _PLACEHOLDER))
        text = self._encode(line).replace("%", "%%").replace(self._spell[str](_PLACEHOLDER), "%s") + "\n"
        lines, spell, rank = self.waiting, self._spell, LEVELS["info"]

        def write(values):
            if rank >= self._threshold and self._has_room():
                now = round(time.time(), 3)
                lines.append((text % (now, *[spell[type(value)](value) for value in values])).encode())

        return write

    def _has_room(self):
        """Whether one more line may wait. If not, count it as dropped; if so, first log how many were dropped."""
        if len(self.waiting) >= MAX_WAITING:
            self._unreported += 1
            self.dropped += 1
            return False
        if self._unreported:
            self._append("log lines dropped", "warning", {"count": self._unreported})
            self._unreported = 0
        return True

    def _admitted(self, event):
        """Whether one more warning of this event may be logged in this second."""
        second = int(time.monotonic())
        if second != self._second:
            warnings, self._warnings, self._second = self._warnings, {}, second
            for name, count in warnings.items():
                if count > MOST_A_SECOND:
                    self._append("log lines suppressed", "warning", {"of": name, "count": count - MOST_A_SECOND})
        count = self._warnings[event] = self._warnings.get(event, 0) + 1
        return count <= MOST_A_SECOND

    def flush(self) -> None:
        """Write the waiting lines, as far as that does not block."""
        line_output.write_lines(self.waiting, self._write)

    def _append(self, event, level, fields):
        shown = {key: _shown(value) for key, value in fields.items()}
        line = {"event": event, "level": level, "time": round(time.time(), 3), **self._base, **shown}
        self.waiting.append(self._encode(line).encode("utf-8") + b"\n")


class Repeats:
    """Remembers which lines have been written, for events that are counted each time and logged now and then."""

    def __init__(self) -> None:
        self._written: dict[object, float] = {}  # key -> when

    def due(self, key: object, now: float) -> bool:
        """Whether to write the line ``key`` now: not if it was written in the last REPEAT seconds."""
        due = now - self._written.get(key, -REPEAT) >= REPEAT
        if due:
            self._written[key] = now
        return due


def _shown(value):
    """Return a value as it is logged. Long ones, which grow with the config (lists of listeners or faults), are cut."""
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return f"{value[:LONGEST_TEXT]}… ({len(value)} characters)"
    if isinstance(value, list):
        more = [f"… and {len(value) - LONGEST_LIST} more"] if len(value) > LONGEST_LIST else []
        return [_shown(one) for one in value[:LONGEST_LIST]] + more
    return value


def trace_lines(error: BaseException) -> list[str]:
    """Return where an exception was raised, as ["file:line"], innermost last."""
    trace, lines = error.__traceback__, []
    while trace:
        lines.append(f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}")
        trace = trace.tb_next
    return lines


def _logfmt(line):
    """Return a flat dictionary as key=value; a value with a space, a quote or an equals sign is quoted as in JSON."""
    return " ".join(f"{key}={_logfmt_value(value)}" for key, value in line.items())


def _logfmt_value(value):
    if isinstance(value, str):
        return value if _PLAIN.match(value) else _json(value)
    if isinstance(value, (dict, list)):
        return _json(_json(value))
    return "" if value is None else _json(value)


class _Spelling(dict):
    """Functions that encode a value, by its type; ``usual`` for all other types."""

    def __init__(self, usual):
        super().__init__()
        self._usual = usual

    def __missing__(self, kind):
        return self._usual


_JSON = _Spelling(_json)
_JSON[str], _JSON[int] = json.encoder.encode_basestring_ascii, int.__repr__

#: For each format: the function that encodes a line, and those that encode a value of it.
ENCODERS = {"json": (_json, _JSON), "logfmt": (_logfmt, _Spelling(_logfmt_value))}
