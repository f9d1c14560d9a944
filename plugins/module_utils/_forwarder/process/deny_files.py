# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads files of networks that are denied, in a child process: a network a line, "#" and ";" begin a comment.

A file that is wrong keeps what it had: a copy of the last good text of each file is in a memfd.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator

from ..admission import deny_table

MOST_BYTES = 128 << 20  # of one file
MOST_NETWORKS = 2_000_000  # of one file
NICE = 10  # of the child


class Wrong(Exception):
    """A file cannot be used; the message is a sentence without a subject."""


def identity(path: str) -> tuple[int, ...]:
    """Return what differs when a file has changed; () if it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def build(files: list[tuple[str, int | None, int | None]], table: int) -> bytes:
    """Write the table of all files to the memfd ``table``; return the result as JSON. This runs in the child.

    Each file is (path, memfd of the last good text or None, memfd for the new one, or None if it has not changed). The
    result is {"files": {path: {"error": sentence, "networks": int}}, "intervals": int}.
    """
    os.nice(NICE)
    results: dict[str, dict] = {}
    keys: dict[str, list[int]] = {family: [] for family in deny_table.BITS}
    for path, good, new in files:
        result = results[path] = {}
        before = {family: len(found) for family, found in keys.items()}
        if new is not None:
            try:
                _copy(path, new)
                result["networks"] = _read(new, keys)
                continue
            except (Wrong, OSError) as error:
                result["error"] = str(error) if isinstance(error, Wrong) else f"cannot be read: {error.strerror}"
                for family, length in before.items():
                    del keys[family][length:]
        if good is not None:
            result["networks"] = _read(good, keys)
    counts = deny_table.write({"": keys}, table)
    return json.dumps({"files": results, "intervals": sum(counts.values())}).encode()


def _copy(path, memory):
    """Copy a file to a memfd. Neither a pipe nor a device can stop this."""
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with open(number, "rb") as stream:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise Wrong("is not a regular file")
        size = 0
        while data := stream.read(1 << 20):
            size += len(data)
            if size > MOST_BYTES:
                raise Wrong(f"is longer than {MOST_BYTES >> 20} MiB")
            os.write(memory, data)


def _read(memory, keys):
    """Append the networks of a file to ``keys``; return how many there are. Raise Wrong."""
    count = 0
    with open(f"/proc/self/fd/{memory}", "rb") as stream:  # a position of its own
        for count, (family, number) in enumerate(networks(stream), 1):
            if count > MOST_NETWORKS:
                raise Wrong(f"has more than {MOST_NETWORKS} networks")
            keys[family].append(number)
    return count


def networks(lines) -> Iterator[tuple[str, int]]:
    """Yield (family, deny_table.key()) of each network in ``lines``, bytes; raise Wrong."""
    parse, key = deny_table.parse, deny_table.key
    for number, line in enumerate(lines, 1):
        text = ""
        try:
            text = line.decode("ascii")
            if "#" in text or ";" in text:
                text = text.partition("#")[0].partition(";")[0]
            text = text.strip()
            if text:
                family, first, length = parse(text)
                yield family, key(first, length)
        except ValueError as error:
            reason = "is not ASCII text" if isinstance(error, UnicodeDecodeError) else error
            raise Wrong(f"line {number}: {ascii(text[:60]) if text else 'it'} {reason}") from None
