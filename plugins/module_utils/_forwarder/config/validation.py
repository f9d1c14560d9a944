# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a JSON object key by key and collect every error with its path, instead of stopping at the first.

A Fields object stands for one JSON object of the document. Each method reads one key and returns its value. For a bad
value it adds ``PATH: VALUE is not WHAT`` to the errors, one list for the whole document, and returns None.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ..._shared.integers import is_whole
from . import defaults

REQUIRED = object()  # as a default: the key must be there
FIRST = object()  # as the default of a choice: the first one

LONGEST_SHOWN = 60  # characters of a value or an unknown key in an error
_PORT_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")
_PLAIN_KEY = re.compile(r"[\w-]+\Z")  # needs no quotes in a path
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_ADDRESS_KINDS = {4: "an IPv4 address", 6: "an IPv6 address", None: "an IP address"}

ZONE = "has a zone; link-local addresses are not supported"


def show(value: Any) -> str:
    """Return a bad value as the document spells it, shortened to one readable line."""
    text = "a value too large to be shown"
    for spell in (json.dumps, repr):
        try:
            text = spell(value)
            break
        except (TypeError, ValueError, RecursionError):
            continue
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


class Fields:
    """One JSON object under validation; ``path`` is its place in the document ("" for the document itself)."""

    def __init__(self, data: Any, path: str, errors: list[str]) -> None:
        self.path = path
        self.errors = errors
        self._read: set[str] = set()
        if not isinstance(data, dict):
            self.error("", f"{show(data)} is not a JSON object")
            data = None
        self.data: dict[str, Any] | None = data

    def where(self, key: str) -> str:
        """Return the path of ``key``, or of this object when ``key`` is empty."""
        return ".".join(part for part in (self.path, key) if part) or "document"

    def error(self, key: str, text: str) -> None:
        """Record one error at ``key``; returns None, so that a check can end with ``return fields.error(...)``."""
        self.errors.append(f"{self.where(key)}: {text}")

    def _take(self, key: str, default: Any) -> tuple[bool, Any]:
        """Return (present, value) of ``key``; a missing required key is recorded."""
        self._read.add(key)
        if self.data is None:
            return False, None  # the object itself was refused already
        if key in self.data:
            return True, self.data[key]
        if default is REQUIRED:
            self.error(key, "is required")
            return False, None
        return False, default

    def integer(self, key: str, what: str, low: float, high: float, default: Any = REQUIRED) -> Any:
        """Return an int from low to high; true and false are not numbers here. ``what`` names it in the error."""
        present, value = self._take(key, default)
        if not present:
            return value
        if not is_whole(value, low, high):
            bounds = f"{low}-{high}" if low < high else low
            return self.error(key, f"{show(value)} is not {what} ({bounds})")
        return value

    def seconds(self, key: str, low: float, high: float, default: Any = REQUIRED) -> Any:
        """Return a duration in seconds as float."""
        return self.number(key, "a duration in seconds", low, high, default)

    def number(self, key: str, what: str, low: float, high: float, default: Any = REQUIRED) -> Any:
        """Return a number from low to high as float."""
        present, value = self._take(key, default)
        if not present:
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            return self.error(key, f"{show(value)} is not {what} ({low}-{high})")
        return float(value)

    def boolean(self, key: str, default: Any = REQUIRED) -> Any:
        """Return true or false."""
        present, value = self._take(key, default)
        if present and not isinstance(value, bool):
            return self.error(key, f"{show(value)} is neither true nor false")
        return value

    def text(self, key: str, longest: int, default: Any = REQUIRED) -> Any:
        """Return a string of 1 to ``longest`` characters; null is the same as a missing key."""
        present, value = self._take(key, default)
        if not present or (value is None and default is None):
            return value
        if not isinstance(value, str) or not 1 <= len(value) <= longest:
            return self.error(key, f"{show(value)} is not a string of 1-{longest} characters")
        return value

    def file(self, key: str, longest: int) -> Any:
        """Return the optional absolute path of a file, at most ``longest`` bytes in UTF-8."""
        value = self.text(key, longest, None)
        return None if value is None else self._path(key, value, longest)

    def files(self, key: str, longest: int, most: int) -> tuple[str, ...]:
        """Return the paths of an optional list, as file() does, at most ``most``."""
        items = self.items(key, (), "files")
        if len(items) > most:
            self.error(key, f"has {len(items)} files; the limit is {most}")
        paths = [self._path(f"{key}[{index}]", item, longest) for index, item in enumerate(items)]
        twice = sorted({path for path in paths if path and paths.count(path) > 1})
        if twice:
            self.error(key, f"has {show(twice[0])} twice")
        return tuple(path for path in paths if path)

    def _path(self, key: str, value: Any, longest: int) -> Any:
        if not isinstance(value, str):
            return self.error(key, f"{show(value)} is not a path")
        try:
            length = len(value.encode())
        except UnicodeEncodeError:  # half of a surrogate pair is not a character
            length = 0
        if not 1 <= length <= longest or _CONTROL.search(value):
            what = f"a path of 1-{longest} bytes (UTF-8, without control characters)"
            return self.error(key, f"{show(value)} is not {what}")
        if not value.startswith("/") or value.endswith(("/", "/.", "/..")):
            return self.error(key, f"{show(value)} is not an absolute path of a file")
        return value

    def octets(self, key: str, longest: int) -> Any:
        """Return an optional string in which each character stands for one byte, U+0000 to U+00FF."""
        value = self.text(key, longest, None)
        beyond = [character for character in value or "" if ord(character) > 0xFF]
        if beyond:
            return self.error(
                key,
                f"{show(value)} has the character U+{ord(beyond[0]):04X}; each character stands for one byte,"
                " U+0000 to U+00FF",
            )
        return value

    def name(self, key: str, colons: bool = False, default: Any = REQUIRED) -> Any:
        """Return a name that is safe in logs and metrics; with ``colons`` also an IPv6 address or host:port."""
        present, value = self._take(key, default)
        if not present:
            return value
        plain = value.replace(":", "") if colons and isinstance(value, str) else value
        if not isinstance(plain, str) or not _NAME.match(plain) or len(value) > defaults.MAX_NAME:
            rule = "1-63 letters, digits, '_', '-' or '.', beginning with a letter or digit"
            if colons:
                rule += f"; colons are allowed too, {defaults.MAX_NAME} characters in all"
            return self.error(key, f"{show(value)} is not a name ({rule})")
        return value

    def choice(self, key: str, supported: Sequence[str], default: Any = FIRST) -> Any:
        """Return one of ``supported``; the default is the first of them, if no other is given."""
        present, value = self._take(key, supported[0] if default is FIRST else default)
        if not present:
            return value
        if not isinstance(value, str) or value not in supported:
            return self.error(key, f"{show(value)} is not supported; use one of {', '.join(supported)}")
        return value

    def address(self, key: str, version: int | None = None, default: Any = REQUIRED) -> Any:
        """Return an ipaddress object of IP version 4, 6 or (None) either."""
        present, value = self._take(key, default)
        if not present:
            return value
        try:
            address = ipaddress.ip_address(value) if isinstance(value, str) else None
        except ValueError:
            address = None
        if address is None or (version is not None and address.version != version):
            return self.error(key, f"{show(value)} is not {_ADDRESS_KINDS[version]}")
        if "%" in value:
            return self.error(key, f"{show(value)} {ZONE}")
        return address

    def ports(self, key: str, most: int, default: Any = REQUIRED) -> Any:
        """Return the port of a number, or the ports of ``"8000-8010"`` (at most ``most``), as a range object."""
        present, value = self._take(key, default)
        if not present:
            return value
        first = last = value
        match = _PORT_RANGE.match(value) if isinstance(value, str) else None
        if match:
            first, last = int(match[1]), int(match[2])
            if first > last:
                return self.error(key, f"{show(value)} ends before it begins")
            if last - first >= most:
                return self.error(key, f"{show(value)} is {last - first + 1} ports; a range has at most {most}")
        if not is_whole(first, 1, 65535) or not first <= last <= 65535:
            return self.error(key, f'{show(value)} is not a port (1-65535) or a range like "8000-8010"')
        return range(first, last + 1)

    def networks(self, key: str) -> tuple[str, ...]:
        """Return the networks of an optional list, in canonical text form; a single address is a network of one."""
        networks = []
        for index, item in enumerate(self.items(key, (), "networks")):
            where = f"{key}[{index}]"
            try:
                network = ipaddress.ip_network(item if isinstance(item, str) else "", strict=True)
            except ValueError as error:
                why = "has host bits set" if "host bits" in str(error) else "is not a network like 192.0.2.0/24"
                self.error(where, f"{show(item)} {why}")
                continue
            if "%" in item:
                self.error(where, f"{show(item)} {ZONE}")
            if network.version == 6 and network.subnet_of(_MAPPED):
                self.error(
                    where,
                    f"{network} has only IPv4-mapped addresses, but such clients count as IPv4; use the IPv4 network",
                )
            networks.append(str(network))
        return tuple(networks)

    def addresses(self, key: str, default: Iterable[str]) -> list[Any]:
        """Return a list of ipaddress objects; ``default`` are addresses in text form."""
        addresses = []
        for index, item in enumerate(self.items(key, default, "addresses")):
            where = f"{key}[{index}]"
            try:
                address = ipaddress.ip_address(item if isinstance(item, str) else "")
            except ValueError:
                self.error(where, f"{show(item)} is not an IP address")
                continue
            if "%" in item:
                self.error(where, f"{show(item)} {ZONE}")
                continue
            addresses.append(address)
        return addresses

    def items(self, key: str, default: Iterable[str], noun: str) -> list[Any]:
        """Return the items of an optional list, which are not validated."""
        present, value = self._take(key, list(default))
        if present and not isinstance(value, list):
            self.error(key, f"{show(value)} is not a list of {noun}")
            return []
        return value or []

    def section(self, key: str) -> Fields:
        """Return the Fields of an optional sub-object (an empty one when the key is missing)."""
        present, value = self._take(key, {})
        return Fields(value if present else {}, self.where(key), self.errors)

    def optional_section(self, key: str) -> Fields | None:
        """Return the Fields of a sub-object; None when the key is missing or null."""
        present, value = self._take(key, None)
        return Fields(value, self.where(key), self.errors) if present and value is not None else None

    def objects(self, key: str, noun: str) -> list[Fields]:
        """Return the Fields of each object in a required list that must not be empty."""
        present, value = self._take(key, REQUIRED)
        if not present:
            return []
        if not isinstance(value, list):
            self.error(key, f"{show(value)} is not a list of {noun}{'es' if noun.endswith('s') else 's'}")
            return []
        if not value:
            self.error(key, f"is empty; at least one {noun} is required")
        return [Fields(item, f"{self.where(key)}[{index}]", self.errors) for index, item in enumerate(value)]

    def done(self) -> None:
        """Record every key that was not read as unknown."""
        for key in self.data or ():
            if key not in self._read:
                name = str(key)[:LONGEST_SHOWN]
                path = name if _PLAIN_KEY.match(name) else json.dumps(name)
                self.error(path, f"is not a known key; the known ones are {', '.join(sorted(self._read))}")
