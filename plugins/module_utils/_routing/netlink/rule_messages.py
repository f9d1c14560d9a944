# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Encode and decode policy rules as netlink messages (linux/fib_rules.h). A host may have thousands."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable
from typing import Any, TypeVar

from ..document import formatting
from ..document.model import KernelObject, Rule
from .messages import AF, address_text, attribute, attributes

RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
FRA_DST, FRA_SRC, FRA_IIFNAME, FRA_GOTO, FRA_PRIORITY, FRA_FWMARK = 1, 2, 3, 4, 6, 10
FRA_SUPPRESS_IFGROUP, FRA_SUPPRESS_PREFIXLEN, FRA_TABLE, FRA_FWMASK, FRA_OIFNAME = 13, 14, 15, 16, 17
FRA_PAD, FRA_UID_RANGE, FRA_PROTOCOL, FRA_IP_PROTO, FRA_SPORT_RANGE, FRA_DPORT_RANGE = 18, 20, 21, 22, 23, 24
FRA_SPORT_MASK, FRA_DPORT_MASK = 28, 29
FIB_RULE_INVERT = 0x2
FRA_L3MDEV = 19
ACTIONS = {1: "lookup", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
NUMBERS = {name: number for number, name in ACTIONS.items()}
# Foreign rules may also jump to a later rule, or do nothing.
FOREIGN_ACTIONS = {**ACTIONS, 2: "goto", 3: "nop"}
# family, dst_len, src_len, tos, table, two reserved, action, flags
BODY = struct.Struct("=BBBBBBBBI")
U32, PORTS, USERS = struct.Struct("=I"), struct.Struct("=HH"), struct.Struct("=II")
# Attributes that select nothing when they have this value.
NEUTRAL = {
    FRA_SUPPRESS_IFGROUP: b"\xff\xff\xff\xff",
    FRA_SUPPRESS_PREFIXLEN: b"\xff\xff\xff\xff",
    FRA_SPORT_MASK: b"\xff\xff",
    FRA_DPORT_MASK: b"\xff\xff",
    FRA_IP_PROTO: b"\0",
}
KNOWN = {FRA_DST, FRA_SRC, FRA_IIFNAME, FRA_OIFNAME, FRA_PRIORITY, FRA_FWMARK, FRA_FWMASK, FRA_SUPPRESS_PREFIXLEN}
KNOWN |= {FRA_TABLE, FRA_PAD, FRA_UID_RANGE, FRA_PROTOCOL, FRA_IP_PROTO, FRA_SPORT_RANGE, FRA_DPORT_RANGE}
_Default = TypeVar("_Default")


def listing(family: str) -> bytes:
    """The body of a request for all rules of a family."""
    return BODY.pack(AF[family], 0, 0, 0, 0, 0, 0, 0, 0)


def encode(rule: Rule, protocol: int) -> bytes:
    """The body of a request to add or remove a rule."""
    lengths, packed = {"src": 0, "dst": 0}, []
    for name, kind, value in (("dst", FRA_DST, rule.dst), ("src", FRA_SRC, rule.src)):
        if value:
            network = ipaddress.ip_network(value)
            lengths[name] = network.prefixlen
            packed.append(attribute(kind, network.network_address.packed))
    numbers = (
        (FRA_PRIORITY, rule.priority),
        (FRA_TABLE, rule.table),
        (FRA_FWMARK, rule.fwmark),
        (FRA_FWMASK, rule.fwmask),
        (FRA_SUPPRESS_PREFIXLEN, rule.suppress_prefixlength),
    )
    packed += [attribute(kind, U32.pack(number)) for kind, number in numbers if number is not None]
    names = ((FRA_IIFNAME, rule.iif), (FRA_OIFNAME, rule.oif))
    packed += [attribute(kind, name.encode() + b"\0") for kind, name in names if name]
    ranges = (
        (FRA_SPORT_RANGE, PORTS, rule.sport),
        (FRA_DPORT_RANGE, PORTS, rule.dport),
        (FRA_UID_RANGE, USERS, rule.uid_range),
    )
    packed += [attribute(kind, shape.pack(*bounds)) for kind, shape, bounds in ranges if bounds]
    if rule.ip_proto is not None:
        packed.append(attribute(FRA_IP_PROTO, bytes([rule.ip_proto])))
    packed.append(attribute(FRA_PROTOCOL, bytes([protocol])))
    head = BODY.pack(AF[rule.family], lengths["dst"], lengths["src"], 0, 0, 0, 0, NUMBERS[rule.action], 0)
    return head + b"".join(packed)


def decode(body: bytes, family: str) -> KernelObject:
    """A rule with its owner. One that the model cannot express has no value: it is not ours, whatever its protocol."""
    _family, dst_len, src_len, tos, short_table, _r1, _r2, action, flags = BODY.unpack_from(body)
    parts = {kind: value for kind, value in attributes(body[BODY.size :]) if value != NEUTRAL.get(kind)}
    protocol = parts.get(FRA_PROTOCOL, b"\0")[0]
    table = _number(parts, FRA_TABLE, short_table)
    inverted, partly = bool(flags & FIB_RULE_INVERT), bool(tos or parts.keys() - KNOWN - {FRA_GOTO})
    # "fwmark 0/MASK" selects packets without a mark; the kernel lists only the mask.
    unmarked = FRA_FWMASK in parts and FRA_FWMARK not in parts
    seen = Rule(
        family=family,
        priority=_number(parts, FRA_PRIORITY, 0),
        action=FOREIGN_ACTIONS.get(action, "nop"),
        table=table if action == 1 else _number(parts, FRA_GOTO, None),
        src=_prefix(parts.get(FRA_SRC), src_len),
        dst=_prefix(parts.get(FRA_DST), dst_len),
        iif=_name(parts.get(FRA_IIFNAME)),
        oif=_name(parts.get(FRA_OIFNAME)),
        fwmark=_number(parts, FRA_FWMARK, 0 if unmarked else None),
        fwmask=_number(parts, FRA_FWMASK, None),
        ip_proto=(parts[FRA_IP_PROTO][0] or None) if FRA_IP_PROTO in parts else None,
        sport=PORTS.unpack(parts[FRA_SPORT_RANGE]) if FRA_SPORT_RANGE in parts else None,
        dport=PORTS.unpack(parts[FRA_DPORT_RANGE]) if FRA_DPORT_RANGE in parts else None,
        uid_range=USERS.unpack(parts[FRA_UID_RANGE]) if FRA_UID_RANGE in parts else None,
        suppress_prefixlength=_number(parts, FRA_SUPPRESS_PREFIXLEN, None),
    )
    if action in ACTIONS and not (inverted or partly or unmarked):
        return KernelObject(seen, protocol, family, table, seen=seen)
    if FRA_L3MDEV in parts:
        return KernelObject(None, protocol, family, table, text=_words(seen, inverted, "l3mdev"))
    more = "with unknown selectors" if partly else ""
    return KernelObject(None, protocol, family, table, _words(seen, inverted, more), seen, inverted, partly)


def _words(seen: Rule, inverted: bool, more: str) -> str:
    """A rule that the model cannot express, as ip-rule(8) would list it."""
    words = formatting.rule(seen)
    words = words.replace(": from ", ": not from ", 1) if inverted else words
    return f"{words} {more}".rstrip()


def _number(parts: dict[int, bytes], kind: int, otherwise: _Default) -> int | _Default:
    return U32.unpack(parts[kind])[0] if kind in parts else otherwise


def _name(value: bytes | None) -> str | None:
    return None if value is None else value.rstrip(b"\0").decode(errors="replace")


def _prefix(packed: bytes | None, length: int) -> str | None:
    if packed is None:
        return None
    # The kernel keeps host bits that were given, and ignores them.
    return str(ipaddress.ip_network(f"{address_text(packed)}/{length}", strict=False))


class OwnedRules:
    """The rules of one owner, and which of them the kernel could remove by mistake.

    A selector that is missing in a request matches any value, and the kernel removes the first rule that matches
    (rule_find in net/core/fib_rules.c): for ``from X`` that may be ``from X ipproto tcp``. So only rules with more
    selectors are at risk. Rules are grouped by their set of selectors; thousands of rules have only a few such sets.
    """

    def __init__(self, rules: Iterable[Rule]):
        self._kinds: dict[tuple[bool, ...], set[Rule]] = {}
        for rule in rules:
            self.add(rule)

    def __contains__(self, rule: Rule) -> bool:
        return rule in self._kinds.get(_kind(rule), ())

    def add(self, rule: Rule) -> None:
        self._kinds.setdefault(_kind(rule), set()).add(rule)

    def discard(self, rule: Rule) -> None:
        self._kinds.get(_kind(rule), set()).discard(rule)

    def is_ambiguous(self, rule: Rule) -> bool:
        """Whether a request to remove ``rule`` could remove another one."""
        own = _kind(rule)
        wider = [kind for kind in self._kinds if kind != own and all(has or not had for had, has in zip(own, kind))]
        return any(_matches(rule, other) for kind in wider for other in self._kinds[kind])


def _compared(rule: Rule) -> tuple[Any, ...]:
    return (*rule.selectors, rule.suppress_prefixlength)


def _kind(rule: Rule) -> tuple[bool, ...]:
    return tuple(part is not None for part in _compared(rule))


def _matches(rule: Rule, other: Rule) -> bool:
    target = (rule.family, rule.priority, rule.action, rule.table)
    same = target == (other.family, other.priority, other.action, other.table)
    return same and all(part in (None, theirs) for part, theirs in zip(_compared(rule), _compared(other)))
