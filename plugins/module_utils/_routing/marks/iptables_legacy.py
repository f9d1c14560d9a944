# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Detect changes of the table mangle of iptables-legacy, which sends no notifications, by a cheap query.

The kernel returns the number of rules and the size of a table (IPT_SO_GET_INFO of linux/netfilter_ipv4/ip_tables.h, and
the same number for IPv6). It needs ctypes, because Python's getsockopt cannot pass the name of the table.
"""

from __future__ import annotations

import ctypes
import socket

TABLE = b"mangle"
GET_INFO = 64
# struct ipt_getinfo: the name, valid_hooks, hook_entry[5], underflow[5], num_entries, size
NAME_SIZE, INFO_SIZE = 32, 32 + 4 * 13
# Where the kernel lists existing tables: the query itself would create one. (IPPROTO_IPV6 is also the level.)
FAMILIES = (
    (socket.AF_INET, socket.IPPROTO_IP, "/proc/self/net/ip_tables_names"),
    (socket.AF_INET6, socket.IPPROTO_IPV6, "/proc/self/net/ip6_tables_names"),
)

_libc = ctypes.CDLL(None, use_errno=True)


def fingerprint() -> tuple[bytes, ...]:
    """A fingerprint of the tables of both families; empty for a missing table."""
    return tuple(_info(family, level) if _exists(names) else b"" for family, level, names in FAMILIES)


def _exists(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return TABLE in file.read().split()
    except OSError:
        return False  # a kernel without iptables-legacy, or without IPv6


def _info(family: int, level: int) -> bytes:
    buffer = ctypes.create_string_buffer(TABLE, INFO_SIZE)
    size = ctypes.c_uint32(INFO_SIZE)
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        failed = _libc.getsockopt(asking.fileno(), level, GET_INFO, buffer, ctypes.byref(size))
    return b"" if failed else buffer.raw[NAME_SIZE:]
