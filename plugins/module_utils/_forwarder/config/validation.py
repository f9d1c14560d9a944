# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take a JSON object apart key by key and collect every error with its path, instead of stopping at the first.

A Fields object stands for one JSON object of the document. Each method takes one key, returns its value, and on a bad
value records ``PATH: VALUE is not WHAT`` in the list all Fields of a document share, and returns None.
"""

from __future__ import annotations

import ipaddress
import json
import re

IPV4, IPV6 = "ipv4", "ipv6"
REQUIRED = object()  # as a default: the key must be there
_PORTS = re.compile(r"([0-9]{1,5})-([0-9]{1,5})\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")
_WORD = re.compile(r"[\w-]+\Z")  # what needs no quotes in a path
LONGEST_NAME = 80  # characters of a name in which colons may be: 63 of a host, a colon and a port, or an IPv6 address
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
ZONE = "has a zone; link-local addresses are not supported"
MAPPED_NETWORK = "holds IPv4-mapped addresses only, and clients with one count as IPv4; give the IPv4 network"

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
LONGEST_KEY = 60  # characters that are shown of a key that is not known


def show(value):
    """Spell a bad value as the document does, shortened to one readable line."""
    text = "a value too large to be shown"
    for spell in (json.dumps, repr):
        try:
            text = spell(value)
            break
        except (TypeError, ValueError, RecursionError):
            continue
    return text if len(text) <= 60 else text[:57] + "..."


class Fields:
    """One JSON object under validation; ``path`` is where it stands in the document ("" for the document itself)."""

    def __init__(self, data, path, errors):
        self.path = path
        self.errors = errors
        self._taken = set()
        if not isinstance(data, dict):
            self.error("", f"{show(data)} is not a JSON object")
            data = None
        self.data = data

    def where(self, key):
        """Return the path of ``key``, or of this object when ``key`` is empty."""
        return ".".join(part for part in (self.path, key) if part) or "document"

    def error(self, key, text):
        """Record one error at ``key``; returns None, so that a check can end with ``return fields.error(...)``."""
        self.errors.append(f"{self.where(key)}: {text}")

    def _take(self, key, default):
        """Return (present, value) of ``key``; a missing required key is recorded."""
        self._taken.add(key)
        if self.data is None:
            return False, None  # the object itself was refused already
        if key in self.data:
            return True, self.data[key]
        if default is REQUIRED:
            self.error(key, "is required")
            return False, None
        return False, default

    def integer(self, key, low, high, what="a whole number", default=REQUIRED):
        """Return an int from low to high; true and false are no numbers here."""
        present, value = self._take(key, default)
        if not present:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            return self.error(key, f"{show(value)} is not {what} ({low}-{high})")
        return value

    def seconds(self, key, low, high, default=REQUIRED):
        """Return a duration in seconds as float."""
        return self.number(key, low, high, "a duration in seconds", default)

    def number(self, key, low, high, what, default=REQUIRED):
        """Return a number from low to high as float."""
        present, value = self._take(key, default)
        if not present:
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            return self.error(key, f"{show(value)} is not {what} ({low}-{high})")
        return float(value)

    def boolean(self, key, default=REQUIRED):
        """Return true or false."""
        present, value = self._take(key, default)
        if present and not isinstance(value, bool):
            return self.error(key, f"{show(value)} is neither true nor false")
        return value

    def text(self, key, longest, default=REQUIRED):
        """Return a string of 1 to ``longest`` characters; null is the same as a missing key."""
        present, value = self._take(key, default)
        if not present or (value is None and default is None):
            return value
        if not isinstance(value, str) or not 1 <= len(value) <= longest:
            return self.error(key, f"{show(value)} is not a text of 1-{longest} characters")
        return value

    def file(self, key, longest):
        """Return the optional absolute path of a file, at most ``longest`` bytes in UTF-8."""
        value = self.text(key, longest, None)
        if value is None:
            return None
        try:
            length = len(value.encode())
        except UnicodeEncodeError:  # half of a surrogate pair is no character
            length = 0
        if not 1 <= length <= longest or _CONTROL.search(value):
            what = f"a path of 1-{longest} bytes (UTF-8, without control characters)"
            return self.error(key, f"{show(value)} is not {what}")
        if not value.startswith("/") or value.endswith(("/", "/.", "/..")):
            return self.error(key, f"{show(value)} is not an absolute path of a file")
        return value

    def octets(self, key, longest):
        """Return an optional string each of whose characters stands for one byte, U+0000 to U+00FF."""
        value = self.text(key, longest, None)
        beyond = [character for character in value or "" if ord(character) > 0xFF]
        if beyond:
            return self.error(
                key,
                f"{show(value)} has the character U+{ord(beyond[0]):04X}; each character stands for one byte,"
                " U+0000 to U+00FF",
            )
        return value

    def name(self, key, colons=False, default=REQUIRED):
        """Return a name that is safe in logs and metrics; with ``colons`` also an IPv6 address or host:port."""
        present, value = self._take(key, default)
        if not present:
            return value
        plain = value.replace(":", "") if colons and isinstance(value, str) else value
        if not isinstance(plain, str) or not _NAME.match(plain) or len(value) > LONGEST_NAME:
            rule = "1-63 letters, digits, '_', '-' or '.', beginning with a letter or digit"
            if colons:
                rule += f"; colons may be among them, {LONGEST_NAME} characters in all"
            return self.error(key, f"{show(value)} is not a name ({rule})")
        return value

    def choice(self, key, supported, default=REQUIRED):
        """Return one of ``supported``; anything else is named as not in this version."""
        present, value = self._take(key, default)
        if not present:
            return value
        if not isinstance(value, str) or value not in supported:
            return self.error(key, f"not in this version: {show(value)} (supported: {', '.join(supported)})")
        return value

    def address(self, key, family=None, default=REQUIRED):
        """Return an ipaddress object of ``family`` (4, 6 or None for either)."""
        present, value = self._take(key, default)
        if not present:
            return value
        what = {4: "an IPv4 address", 6: "an IPv6 address", None: "an IP address"}[family]
        try:
            parsed = ipaddress.ip_address(value) if isinstance(value, str) else None
        except ValueError:
            parsed = None
        if parsed is None or (family is not None and parsed.version != family):
            return self.error(key, f"{show(value)} is not {what}")
        if "%" in value:
            return self.error(key, f"{show(value)} {ZONE}")
        return parsed

    def ports(self, key, most, default=REQUIRED):
        """Return the ports of a number, or of a range ``"8000-8010"`` of at most ``most`` ports, as a range object."""
        present, value = self._take(key, default)
        if not present:
            return value
        first = last = value
        found = _PORTS.match(value) if isinstance(value, str) else None
        if found:
            first, last = int(found[1]), int(found[2])
            if first > last:
                return self.error(key, f"{show(value)} ends before it begins")
            if last - first >= most:
                return self.error(key, f"{show(value)} is {last - first + 1} ports; a range has at most {most}")
        if isinstance(first, bool) or not isinstance(first, int) or not 1 <= first <= last <= 65535:
            return self.error(key, f'{show(value)} is not a port (1-65535) or a range like "8000-8010"')
        return range(first, last + 1)

    def networks(self, key):
        """Return the networks of an optional list, in canonical text form; a single address is a network of one."""
        present, value = self._take(key, [])
        if not present:
            return ()
        if not isinstance(value, list):
            self.error(key, f"{show(value)} is not a list of networks")
            return ()
        found = []
        for index, item in enumerate(value):
            try:
                network = str(ipaddress.ip_network(item if isinstance(item, str) else "", strict=True))
            except ValueError as error:
                why = "has host bits set" if "host bits" in str(error) else "is not a network like 192.0.2.0/24"
                self.error(f"{key}[{index}]", f"{show(item)} {why}")
                continue
            if "%" in item:
                self.error(f"{key}[{index}]", f"{show(item)} {ZONE}")
            if ":" in network and ipaddress.ip_network(network).subnet_of(_MAPPED):
                self.error(f"{key}[{index}]", f"{network} {MAPPED_NETWORK}")
            found.append(network)
        return tuple(found)

    def addresses(self, key, default):
        """Return a list of ipaddress objects; ``default`` are addresses in text form."""
        present, value = self._take(key, list(default))
        if present and not isinstance(value, list):
            self.error(key, f"{show(value)} is not a list of addresses")
            return []
        found = []
        for number, item in enumerate(value or ()):
            try:
                address = ipaddress.ip_address(item if isinstance(item, str) else "")
            except ValueError:
                self.error(f"{key}[{number}]", f"{show(item)} is not an IP address")
                continue
            if "%" in item:
                self.error(f"{key}[{number}]", f"{show(item)} {ZONE}")
                continue
            found.append(address)
        return found

    def section(self, key):
        """Return the Fields of an optional sub-object (an empty one when the key is missing)."""
        present, value = self._take(key, {})
        return Fields(value if present else {}, self.where(key), self.errors)

    def objects(self, key, what):
        """Return the Fields of each object in a required list that must not be empty."""
        present, value = self._take(key, REQUIRED)
        if not present:
            return []
        if not isinstance(value, list):
            self.error(key, f"{show(value)} is not a list of {what}s")
            return []
        if not value:
            self.error(key, f"is empty, at least one {what} is expected")
        return [Fields(item, f"{self.where(key)}[{index}]", self.errors) for index, item in enumerate(value)]

    def done(self):
        """Record every key nobody asked for."""
        for key in self.data or ():
            if key not in self._taken:
                known = ", ".join(sorted(self._taken))
                name = str(key)[:LONGEST_KEY]
                self.error(name if _WORD.match(name) else json.dumps(name), f"is not a known key (known here: {known})")
