# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A table of denied networks in a memfd, which one process writes and all workers map.

Networks of a *scope* (the name of a service, or "" for all services) become disjoint intervals of addresses in
ascending order, each with the second of the epoch at which it ends. Where networks overlap, the latest end counts, so
a table stays right while its entries expire. A look-up is a bisection in a part of the table that an index names: with
a million entries some 1.5 µs. Nothing is copied when a worker maps a table.

The memfd has 8 bytes with the length of a JSON header, the header {scope: {"ipv4": FIELDS, "ipv6": FIELDS}}, and the
arrays that FIELDS say: {name: [offset in bytes, number of items]} and "low", "shift" for the index.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
import time
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .refusal import Refusal

FOREVER = (1 << 32) - 1  # an end that never comes
DENIED = Refusal("denied", "client address is banned")
BITS = {"ipv4": 32, "ipv6": 128}
MOST_BUCKETS = 1 << 18  # of the index
_LOW = (1 << 64) - 1
_MAPPED = 0xFFFF << 32  # ::ffff:0:0/96
_HALVES = struct.Struct(">QQ")
_LENGTH = struct.Struct("=Q")
_ALIGNED = 8


# -- networks --------------------------------------------------------------------------------------------------------


def parse(text: str) -> tuple[str, int, int]:
    """Return (family, first address, prefix length) of an address or a network; raise ValueError, half a sentence.

    IPv4-mapped IPv6 addresses become IPv4. This is five times as fast as ipaddress.
    """
    host, slash, length_text = text.partition("/")
    family = "ipv6" if ":" in host else "ipv4"
    bits = BITS[family]
    try:
        packed = socket.inet_pton(socket.AF_INET6 if family == "ipv6" else socket.AF_INET, host)
        length = int(length_text) if slash else bits
    except (OSError, ValueError):
        raise ValueError("is neither an address nor a network, such as 192.0.2.0/24") from None
    if not 0 <= length <= bits or (slash and not (length_text.isdigit() and length_text.isascii())):
        raise ValueError(f"has no prefix length from 0 to {bits}")
    first = int.from_bytes(packed, "big")
    if family == "ipv6" and length >= 96 and first >> 32 == 0xFFFF:
        family, bits, length, first = "ipv4", 32, length - 96, first & 0xFFFFFFFF
    if first & (1 << bits - length) - 1:
        raise ValueError(f"has host bits set; {show(family, first >> bits - length << bits - length, length)} has not")
    if not length:
        raise ValueError("is every address; remove the service, or its listeners, to serve nobody")
    return family, first, length


def show(family: str, first: int, length: int) -> str:
    """Return a network as text; one address without a length."""
    bits = BITS[family]
    text = socket.inet_ntop(socket.AF_INET6 if bits == 128 else socket.AF_INET, first.to_bytes(bits // 8, "big"))
    return text if length == bits else f"{text}/{length}"


def key(first: int, length: int, expires: int = FOREVER) -> int:
    """Return a network as one number; sorted, a network comes before those that are in it."""
    return (first << 8 | length) << 32 | expires


def intervals(keys: Iterable[int], bits: int) -> Iterator[tuple[int, int, int]]:
    """Yield disjoint (first address, last address, end) of sorted keys, in ascending order.

    Networks are disjoint or within each other, so those that are open form a stack.
    """
    around: list[tuple[int, int]] = []  # (last address, end)
    position = 0  # the first address that is not yielded yet
    for number in keys:
        expires, first = number & FOREVER, number >> 40
        last = first | (1 << bits - (number >> 32 & 255)) - 1
        while around and around[-1][0] < first:
            end, until = around.pop()
            if position <= end:
                yield position, end, until
                position = end + 1
        if around:
            if around[-1][1] >= expires:
                continue
            if position < first:
                yield position, first - 1, around[-1][1]
        position = first
        around.append((last, expires))
    while around:
        end, until = around.pop()
        if position <= end:
            yield position, end, until
            position = end + 1


def joined(found: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yield intervals, those that touch and end together as one."""
    before: tuple[int, int, int] | None = None
    for first, last, expires in found:
        if before is None:
            before = first, last, expires
        elif first == before[1] + 1 and expires == before[2]:
            before = before[0], last, expires
        else:
            yield before
            before = first, last, expires
    if before is not None:
        yield before


# -- writing ---------------------------------------------------------------------------------------------------------


def write(scopes: dict[str, dict[str, list[int]]], fd: int) -> dict[str, int]:
    """Write the table of ``scopes``, {scope: {family: [key()]}}, to a memfd; return {family: number of intervals}.

    The lists are sorted, and emptied to save memory.
    """
    arrays: list[array] = []
    header: dict[str, dict[str, Any]] = {}
    counts = dict.fromkeys(BITS, 0)
    for scope, families in scopes.items():
        header[scope] = {}
        for family, keys in families.items():
            fields = _arrays(keys, BITS[family])
            if fields is None:
                continue
            low, shift, named = fields
            counts[family] += len(named["first"])
            header[scope][family] = {"low": low, "shift": shift, "arrays": list(named), "from": len(arrays)}
            arrays += named.values()
    _write(fd, header, arrays)
    return counts


def _arrays(keys, bits):
    keys.sort()
    wide = bits == 128
    names = ("first", "last", "first_low", "last_low") if wide else ("first", "last")
    named = {name: array("Q" if wide else "I") for name in names}
    ends = array("I")
    add_first, add_last, add_end = named["first"].append, named["last"].append, ends.append
    for first, last, expires in joined(intervals(keys, bits)):
        if wide:
            add_first(first >> 64)
            add_last(last >> 64)
            named["first_low"].append(first & _LOW)
            named["last_low"].append(last & _LOW)
        else:
            add_first(first)
            add_last(last)
        add_end(expires)
    keys.clear()
    if not ends:
        return None
    return (*_index(named["first"]), {**named, "ends": ends, "index": _index(named["first"], True)})


def _index(firsts, whole=False):
    """Return (lowest number, shift), or the index: of each bucket, how many numbers are in those before it."""
    low, high = firsts[0], firsts[-1]
    buckets = min(MOST_BUCKETS, max(1, len(firsts) // 4))
    shift = max(0, (high - low).bit_length() - buckets.bit_length() + 1)
    if not whole:
        return low, shift
    index, bucket = array("I", [0]), 0
    for number, first in enumerate(firsts):
        while first - low >> shift > bucket:
            index.append(number)
            bucket += 1
    index.append(len(firsts))
    return index


def _write(fd, header, arrays):
    places, offset = [], 0
    for items in arrays:
        places.append((offset, len(items)))
        offset = -(-(offset + len(items) * items.itemsize) // _ALIGNED) * _ALIGNED
    for families in header.values():
        for fields in families.values():
            at = fields.pop("from")
            fields["arrays"] = {name: places[at + number] for number, name in enumerate(fields["arrays"])}
    text = json.dumps(header).encode()
    text += b" " * (-(_LENGTH.size + len(text)) % _ALIGNED)
    with open(fd, "wb", closefd=False) as stream:
        stream.write(_LENGTH.pack(len(text)) + text)
        for items in arrays:
            items.tofile(stream)
            stream.write(b"\0" * (-(len(items) * items.itemsize) % _ALIGNED))


# -- reading ---------------------------------------------------------------------------------------------------------


class Table:
    """The table in a memfd, which stays open; ``scopes`` are its Intervals by (scope, family)."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        os.set_inheritable(fd, False)
        self.size = os.fstat(fd).st_size
        self._map = mmap.mmap(fd, self.size, prot=mmap.PROT_READ)
        memory = memoryview(self._map)
        (length,) = _LENGTH.unpack_from(memory)
        start = _LENGTH.size + length
        header = json.loads(bytes(memory[_LENGTH.size : start]))
        self.scopes: dict[tuple[str, str], Intervals] = {
            (scope, family): Intervals(family, fields, memory, start)
            for scope, families in header.items()
            for family, fields in families.items()
        }
        memory.release()

    def __len__(self) -> int:
        return sum(map(len, self.scopes.values()))

    def close(self) -> None:
        """Close the descriptor; the memory stays mapped."""
        os.close(self.fd)

    def unmap(self) -> None:
        """Give the memory back; nobody may look up any more."""
        for found in self.scopes.values():
            found.release()
        self._map.close()


class Intervals:
    """The intervals of one scope and family."""

    def __init__(self, family: str, fields: dict, memory: memoryview, start: int) -> None:
        self.family = family
        views: dict[str, Any] = {}
        for name, (at, count) in fields["arrays"].items():
            wide = family == "ipv6" and name not in ("ends", "index")
            raw = memory[start + at : start + at + count * (8 if wide else 4)]
            views[name] = raw.cast("Q") if wide else raw.cast("I")
            raw.release()
        self._views = list(views.values())
        self._wide = family == "ipv6"
        self._first, self._last, self._ends, self._index = (views[key] for key in ("first", "last", "ends", "index"))
        self._first_low, self._last_low = views.get("first_low", ()), views.get("last_low", ())
        self._low, self._shift, self._buckets = fields["low"], fields["shift"], len(self._index) - 1

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        if not self._wide:
            return zip(self._first, self._last, self._ends)
        lows = zip(self._first, self._first_low, self._last, self._last_low, self._ends)
        return ((first << 64 | low, last << 64 | last_low, end) for first, low, last, last_low, end in lows)

    def release(self) -> None:
        """Give the memory back."""
        for view in self._views:
            view.release()

    def end_of(self, number: int, low: int = 0) -> int:
        """Return the end of the interval that an address is in, 0 if it is in none; ``number``: of IPv6 the high half.

        An interval may begin in an earlier bucket than the address is in; it is the last one before.
        """
        bucket = number - self._low >> self._shift
        if bucket < 0:
            return 0
        count = len(self._ends)
        if bucket < self._buckets:
            place = bisect_right(self._first, number, self._index[bucket], self._index[bucket + 1]) - 1
        else:
            place = count - 1
        if place < 0:
            return 0
        if not self._wide:
            return self._ends[place] if number <= self._last[place] else 0
        while place >= 0 and self._first[place] == number and self._first_low[place] > low:
            begin = place  # several intervals begin in one /64
            while begin > 0 and self._first[begin - 1] == number:
                begin = bisect_right(self._first, number - 1, 0, begin)
            place = bisect_right(self._first_low, low, begin, place) - 1
            if place < begin:
                place = begin - 1
        last = self._last[place] if place >= 0 else -1
        inside = number < last or (number == last and low <= self._last_low[place])
        return self._ends[place] if inside else 0


class Denied:
    """What one service looks up: all its Intervals of the tables that there are.

    ``protected`` says of an address whether it can never be banned; it is asked only if an address is banned.
    """

    def __init__(self, service: str) -> None:
        self._service = service

    def use(self, tables: Iterable[Table], protected: Callable[[str], bool]) -> None:
        """Look up in these tables from now on."""
        self._protected = protected
        of: dict[str, list[Intervals]] = {family: [] for family in BITS}
        for table in tables:
            for (scope, family), found in table.scopes.items():
                if scope in ("", self._service):
                    of[family].append(found)
        self._ipv4, self._ipv6 = of["ipv4"], of["ipv6"]

    def __bool__(self) -> bool:
        return bool(self._ipv4 or self._ipv6)

    def refusal(self, address: str) -> Refusal | None:
        """Return the Refusal of a client's address, as text and maybe with a %zone; None if it is not banned."""
        if ":" not in address:
            number, low, found = int.from_bytes(socket.inet_aton(address), "big"), 0, self._ipv4
        else:
            number, low = _HALVES.unpack(socket.inet_pton(socket.AF_INET6, address.partition("%")[0]))
            found = self._ipv6
            if not number and low & ~0xFFFFFFFF == _MAPPED:
                number, low, found = low & 0xFFFFFFFF, 0, self._ipv4
        for one in found:
            end = one.end_of(number, low)
            if end and (end == FOREVER or time.time() < end) and not self._protected(address):
                return DENIED
        return None
