# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A packet filter for a netlink socket: the kernel drops notifications that do not concern us, without waking us.

On a busy router, thousands of routes a second change in tables that are not ours. The filter is a program for the
classic packet filter (Documentation/networking/filter.rst) and sees one rtnetlink message. It passes rules, routes and
neighbours only if they have one of our protocols, tables or addresses; it passes all other messages. Pure.
"""

from __future__ import annotations

import array
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterable

# linux/rtnetlink.h: each pair is NEW, DEL.
ROUTE, NEIGHBOUR, RULE = (24, 25), (28, 29), (32, 33)
# The attributes that the filter reads: RTA_TABLE, NDA_DST, FRA_PRIORITY, FRA_PROTOCOL.
RTA_TABLE, NDA_DST, FRA_PRIORITY, FRA_PROTOCOL = 15, 1, 6, 21
# A message of each of the three kinds: nlmsghdr (16), then rtmsg, ndmsg or fib_rule_hdr (12), then attributes.
TYPE_AT, FAMILY_AT, ATTRIBUTES_AT = 4, 16, 28
# The last word of the address that the client connects to, in a message of conntrack: nlmsghdr (16), nfgenmsg (4),
# three headers of attributes and the source, one more header.
TARGET_IPV4_AT, TARGET_IPV6_AT = 20 + 12 + 4 + 4, 20 + 12 + 16 + 4 + 12
# An attribute's value comes after its length and its type.
VALUE_AT = 4
# asm-generic/socket.h
SO_ATTACH_FILTER = 26
# linux/bpf_common.h and linux/filter.h: class, size, mode.
LOAD_WORD, LOAD_HALF, LOAD_BYTE = 0x20, 0x28, 0x30  # BPF_LD | size | BPF_ABS
LOAD_WORD_AT_X, LOAD_BYTE_AT_X = 0x40, 0x50  # BPF_LD | size | BPF_IND
LOAD_NUMBER, SET_X, MOVE_TO_X = 0x00, 0x01, 0x07
JUMP, JUMP_IF_EQUAL, JUMP_IF_GREATER, RETURN = 0x05, 0x15, 0x25, 0x06
# Search for the attribute of type X from offset A on; returns its offset, or 0.
FIND_ATTRIBUTE = 0xFFFFF000 + 12  # SKF_AD_OFF + SKF_AD_NLATTR
PASS, DROP = 0xFFFFFFFF, 0
# BPF_MAXINSNS
MAX_INSTRUCTIONS = 4096

Instruction = tuple[int, int, int, int]


def as_loaded(value: int, size: int) -> int:
    """A number in the host's byte order as the filter sees it: it loads everything in network byte order."""
    return int.from_bytes(value.to_bytes(size, sys.byteorder), "big")


def _any_of(values: Iterable[int], otherwise: Iterable[Instruction] = ((RETURN, 0, 0, DROP),)) -> list[Instruction]:
    """Pass the message if the loaded value is one of these; else run ``otherwise``."""
    tests = [line for value in sorted(set(values)) for line in ((JUMP_IF_EQUAL, 0, 1, value), (RETURN, 0, 0, PASS))]
    return [*tests, *otherwise]


def _at_most(number: int) -> list[Instruction]:
    """Pass the message if the four bytes at X are at most this number, ignoring the lowest byte.

    The number is in the host's byte order, so the filter has to compare it byte by byte.
    """
    highest_first = range(3, 0, -1) if sys.byteorder == "little" else range(3)
    lines: list[Instruction] = []
    for place, value in zip(highest_first, number.to_bytes(4, "big")):
        lines += [
            (LOAD_BYTE_AT_X, 0, 0, VALUE_AT + place),
            (JUMP_IF_GREATER, 0, 1, value),
            (RETURN, 0, 0, DROP),
            (JUMP_IF_EQUAL, 1, 0, value),
            (RETURN, 0, 0, PASS),
        ]
    return [*lines, (RETURN, 0, 0, PASS)]


def _attribute(kind: int) -> list[Instruction]:
    """Point X at an attribute; pass a message without it."""
    return [
        (LOAD_NUMBER, 0, 0, ATTRIBUTES_AT),
        (SET_X, 0, 0, kind),
        (LOAD_WORD, 0, 0, FIND_ATTRIBUTE),
        (JUMP_IF_EQUAL, 0, 1, 0),
        (RETURN, 0, 0, PASS),
        (MOVE_TO_X, 0, 0, 0),
    ]


def _when(code: tuple[int, ...], size: int, block: list[Instruction]) -> list[Instruction]:
    """Run a block, which must end in a return, if the loaded value is one of these."""
    lines = []
    for number, kind in enumerate(code):
        # Jump to the block, over the rest of this list: two instructions for each value.
        rest = 2 * (len(code) - number - 1)
        lines += [(JUMP_IF_EQUAL, 0, 1, as_loaded(kind, size)), (JUMP, 0, 0, rest + 1)]
    return [*lines, (JUMP, 0, 0, len(block)), *block]


def program(
    protocols: Iterable[int], tables: Iterable[int], addresses: Iterable[str], before: int = 0
) -> list[Instruction]:
    """The filter for rules of ``protocols`` or with a priority up to about ``before``, routes of ``tables`` and
    neighbours at ``addresses``."""
    others = [*_attribute(FRA_PRIORITY), *_at_most(before)] if before else [(RETURN, 0, 0, DROP)]
    packed = [ipaddress.ip_address(address).packed for address in addresses]
    # The last word of an IPv6 address is enough to drop almost all others.
    words = {length: [int.from_bytes(part[-4:], "big") for part in packed if len(part) == length] for length in (4, 16)}
    ipv4 = [(LOAD_WORD_AT_X, 0, 0, VALUE_AT), *_any_of(words[4])]
    ipv6 = [(LOAD_WORD_AT_X, 0, 0, VALUE_AT + 12), *_any_of(words[16])]
    neighbour = [
        *_attribute(NDA_DST),
        (LOAD_BYTE, 0, 0, FAMILY_AT),
        *_when((socket.AF_INET,), 1, ipv4),
        *_when((socket.AF_INET6,), 1, ipv6),
        (RETURN, 0, 0, DROP),
    ]
    instructions = [
        (LOAD_HALF, 0, 0, TYPE_AT),
        *_when(
            ROUTE,
            2,
            [
                *_attribute(RTA_TABLE),
                (LOAD_WORD_AT_X, 0, 0, VALUE_AT),
                *_any_of(as_loaded(table, 4) for table in tables),
            ],
        ),
        *_when(RULE, 2, [*_attribute(FRA_PROTOCOL), (LOAD_BYTE_AT_X, 0, 0, VALUE_AT), *_any_of(protocols, others)]),
        *_when(NEIGHBOUR, 2, neighbour),
        (RETURN, 0, 0, PASS),
    ]
    return instructions if len(instructions) <= MAX_INSTRUCTIONS else [(RETURN, 0, 0, PASS)]


def arp_replies(addresses: Iterable[str]) -> list[Instruction]:
    """The filter for ARP packets without link header: replies from these addresses."""
    words = [int.from_bytes(ipaddress.ip_address(address).packed, "big") for address in addresses]
    # The operation is at 6, and 2 for a reply; the sender's address is at 14.
    reply = [(LOAD_HALF, 0, 0, 6), (JUMP_IF_EQUAL, 1, 0, 2), (RETURN, 0, 0, DROP)]
    return [*reply, (LOAD_WORD, 0, 0, 14), *_any_of(words)]


def connections_to(addresses: Iterable[str]) -> list[Instruction]:
    """The filter for messages of conntrack about connections that clients began to one of these addresses."""
    packed = [ipaddress.ip_address(address).packed for address in addresses]
    words = {length: [int.from_bytes(part[-4:], "big") for part in packed if len(part) == length] for length in (4, 16)}
    instructions = [
        (LOAD_BYTE, 0, 0, FAMILY_AT),
        *_when((socket.AF_INET,), 1, [(LOAD_WORD, 0, 0, TARGET_IPV4_AT), *_any_of(words[4])]),
        *_when((socket.AF_INET6,), 1, [(LOAD_WORD, 0, 0, TARGET_IPV6_AT), *_any_of(words[16])]),
        (RETURN, 0, 0, DROP),
    ]
    return instructions if len(instructions) <= MAX_INSTRUCTIONS else [(RETURN, 0, 0, PASS)]


def attach(netlink: socket.socket, lines: list[Instruction]) -> None:
    """Attach the filter to a socket, in place of an earlier one."""
    code = array.array("B", b"".join(struct.pack("=HBBI", *line) for line in lines))
    # struct sock_fprog: the number of instructions and their address; the kernel copies them.
    netlink.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(lines), code.buffer_info()[0]))
