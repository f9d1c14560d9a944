# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hash of a client's address: the one that nftables computes with ``jhash ip saddr mod SIZE seed SEED``. Pure.

A user-space process and the kernel of any proxy therefore find the same bucket for a client. The hash is Bob Jenkins'
lookup3 as in Linux, include/linux/jhash.h; net/netfilter/nft_hash.c scales it to the number of buckets. Linux reads the
first 12 bytes of an IPv6 address in the byte order of the CPU; this file reads them as little-endian, so on a
big-endian kernel (s390x) IPv6 differs.

This is a protocol between proxies and versions. It may never change: tests compare it with the kernel and with fixed
values.
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_pton
from struct import unpack

SEED = 0x6C347078  # ASCII "l4px"
_INITIAL = 0xDEADBEEF
_MASK = 0xFFFFFFFF


def client_hash(address: str) -> int:
    """Return the hash of an IPv4 or IPv6 address in text form, of 32 bits; a zone does not count."""
    if ":" not in address:
        return word_hash(unpack("<I", inet_pton(AF_INET, address))[0], SEED)
    first, second, third, last = unpack("<4I", inet_pton(AF_INET6, address.partition("%")[0]))
    start = _INITIAL + 16 + SEED
    a, b, c = _mix(start + first, start + second & _MASK, start + third & _MASK)
    return _final(a + last & _MASK, b, c)


def word_hash(word: int, seed: int) -> int:
    """Return the hash of a 32-bit number."""
    start = _INITIAL + 4 + seed & _MASK
    return _final(start + word & _MASK, start, start)


def scale(number: int, size: int) -> int:
    """Return the place of a 32-bit ``number`` among ``size`` equal parts (reciprocal_scale() of Linux)."""
    return number * size >> 32


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    a = (a - c ^ (c << 4 | c >> 28)) & _MASK
    c = c + b & _MASK
    b = (b - a ^ (a << 6 | a >> 26)) & _MASK
    a = a + c & _MASK
    c = (c - b ^ (b << 8 | b >> 24)) & _MASK
    b = b + a & _MASK
    a = (a - c ^ (c << 16 | c >> 16)) & _MASK
    c = c + b & _MASK
    b = (b - a ^ (a << 19 | a >> 13)) & _MASK
    a = a + c & _MASK
    c = (c - b ^ (b << 4 | b >> 28)) & _MASK
    return a, b + a & _MASK, c


def _final(a: int, b: int, c: int) -> int:
    c = (c ^ b) - (b << 14 | b >> 18) & _MASK
    a = (a ^ c) - (c << 11 | c >> 21) & _MASK
    b = (b ^ a) - (a << 25 | a >> 7) & _MASK
    c = (c ^ b) - (b << 16 | b >> 16) & _MASK
    a = (a ^ c) - (c << 4 | c >> 28) & _MASK
    b = (b ^ a) - (a << 14 | a >> 18) & _MASK
    return (c ^ b) - (b << 24 | b >> 8) & _MASK
