# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is banned at kernel services, as the forwarder's supervisor says: a file that an unprivileged user writes.

    {"schema": 1, "lists": [{"source": "bans", "service": "", "family": "ipv4",
                             "ranges": [["192.0.2.0", "192.0.2.255", 0]]}]}

A range ends at a second of the epoch (0: never); ``service`` "" stands for all. Whoever can write the file can refuse
clients, and nothing else: links are not followed, nothing blocks, and the size is bounded. No error quotes the content.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..._shared.paths import BANS
from .backend_states import FLAGS, content

SCHEMA = 1
MOST_BYTES = 16 << 20
MOST_RANGES = 140_000
AF = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
SOURCES = ("bans", "files")


@dataclass(frozen=True)
class BanList:
    """The ranges that one service (or all: "") refuses, as text for nft."""

    service: str
    family: str
    elements: str

    @property
    def name(self) -> str:
        """The name of its set, which is another one for other elements."""
        return f"banned_{self.family}_{hashlib.blake2b(self.elements.encode(), digest_size=8).hexdigest()}"


@dataclass(frozen=True)
class Bans:
    """``next_end`` is when the first of them ends, in seconds of the epoch; infinity if none does."""

    lists: tuple[BanList, ...] = ()
    next_end: float = float("inf")
    fault: str | None = None


class Reader:
    """Reads the file if it has changed. A file that is wrong leaves what it said before."""

    def __init__(self, path: str = BANS, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._identity: tuple[int, ...] | None = None
        self._ranges: list[tuple[str, str, list[Any]]] = []
        self._fault: str | None = None
        self._bans = Bans()

    def __call__(self) -> Bans:
        """The bans that hold now."""
        now = self._clock()
        if self._read() or self._bans.next_end <= now:
            self._bans = _bans(self._ranges, now, self._fault)
        return self._bans

    def _read(self) -> bool:
        """Read the file; returns whether it may have changed."""
        try:
            descriptor = os.open(self.path, FLAGS)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            # systemd removes the file at a restart of the forwarder; the next one writes it, even if nobody is banned.
            changed, self._identity = self._identity is not None, None
            self._fault = None if missing else f"{self.path} is ignored: {error.strerror}"
            return changed
        try:
            found = os.fstat(descriptor)
            identity = (found.st_ino, found.st_size, found.st_mtime_ns)
            if identity == self._identity:
                return False
            self._identity = identity
            self._ranges, self._fault = _parse(content(descriptor, MOST_BYTES)), None
        except (OSError, ValueError) as error:
            self._fault = f"{self.path} is ignored: {error}"
        finally:
            os.close(descriptor)
        return True


def _parse(data: bytes) -> list[tuple[str, str, list[Any]]]:
    """(service, family, ranges) of each list; ValueError if something is not as it should be."""
    try:
        lists = json.loads(data)["lists"]
        found = [
            (str(one["service"]), one["family"], [_range(one["family"], *each) for each in one["ranges"]])
            for one in sorted(lists, key=lambda one: SOURCES.index(one["source"]))
        ]
    except (ValueError, TypeError, KeyError, LookupError, OSError, RecursionError):
        raise ValueError("it has no valid lists") from None
    if sum(len(ranges) for _service, _family, ranges in found) > MOST_RANGES:
        raise ValueError(f"it has more than {MOST_RANGES} ranges")
    return found


def _range(family: str, first: str, last: str, end: int) -> tuple[bytes, bytes, int]:
    packed = (socket.inet_pton(AF[family], first), socket.inet_pton(AF[family], last))
    if packed[0] > packed[1] or not isinstance(end, int):
        raise ValueError
    return (*packed, end)


def _bans(lists: list[tuple[str, str, list[Any]]], now: float, fault: str | None) -> Bans:
    found, ends = [], [float("inf")]
    for service, family, ranges in lists:
        spans: list[list[bytes]] = []
        for first, last, end in sorted(one for one in ranges if not one[2] or one[2] > now):
            ends.append(end or float("inf"))
            if spans and first <= spans[-1][1]:  # nft refuses overlapping ones
                spans[-1][1] = max(spans[-1][1], last)
            else:
                spans.append([first, last])
        texts = ("-".join(socket.inet_ntop(AF[family], one) for one in dict.fromkeys(span)) for span in spans)
        if spans:
            found.append(BanList(service, family, ", ".join(texts)))
    return Bans(tuple(found), min(ends), fault)
