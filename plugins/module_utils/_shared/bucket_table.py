# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Maglev's table of buckets (Eisenbud et al., Maglev, NSDI 2016, section 3.4): which backend owns which bucket. Pure.

It follows from the names and weights of the backends alone, in any order. So all proxies have the same one, in user
space and in the kernel. A client's bucket is ``scale(client_hash(address), len(table))`` (client_hash.py).

- Each backend goes through the buckets in an order that follows from its name: its n-th one is ``first`` + ``step`` x
  shuffle(n), modulo the size, which is prime. ``first`` and ``step`` - 1 are the two halves of the 16-byte BLAKE2b of
  the name, big-endian, modulo size and size - 1. shuffle() is one permutation for all: the numbers in the order of
  their hashes. Maglev has n in its place; but if the steps of two backends are alike, their orders follow each other,
  and when a third one leaves, up to a quarter of all clients move besides its own.
- In rounds, sorted by name, each backend takes its next free bucket. The heaviest does so in every round, another one
  in as many as its weight is a part of the heaviest weight. All do in the first, so each has at least one bucket.
- When a backend cannot serve, the table stays, and owner() finds the next backend for its buckets alone: no other
  client moves, and proxies that know different states differ in the clients of that backend only.

The size has few steps, because nearly every client moves to another backend when it changes. It does not depend on the
weights, which an operator may change while the proxy runs.

This is a protocol between proxies and versions. It may never change: tests compare it with fixed values.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from functools import lru_cache
from hashlib import blake2b

from .client_hash import SEED, scale, word_hash

SIZES = (4093, 16381, 65537)
PER_BACKEND = 100  # buckets that a backend has on average, at least: shares of equal backends then differ by 1 %
TRIES = 16  # other buckets that are looked up for a client whose backend cannot serve, before all are searched
_FREE = 0xFFFF  # more than any index of a backend


def size_for(count: int) -> int:
    """Return the number of buckets for ``count`` backends."""
    return next((size for size in SIZES if size >= PER_BACKEND * count), SIZES[-1])


def fill(names: Sequence[str], weights: Sequence[float]) -> Sequence[int]:
    """Return the owner of each bucket, as the index in ``names``."""
    size = size_for(len(names))
    order = sorted(range(len(names)), key=names.__getitem__)
    places = [_first_and_step(name, size) for name in names]
    shuffled, tried = _shuffled(size), [0] * len(names)
    heaviest, due = max(weights), [0.0] * len(names)
    table, left, turn = [_FREE] * size, size, 0
    while True:
        turn += 1
        for index in order:
            if turn * weights[index] < due[index]:
                continue
            due[index] += heaviest
            first, step = places[index]
            number = tried[index]
            while table[(place := (first + step * shuffled[number]) % size)] != _FREE:
                number += 1
            table[place] = index
            tried[index] = number + 1
            left -= 1
            if not left:
                return array("H", table)


def owner(table: Sequence[int], bucket: int, candidates: Collection[int]) -> int:
    """Return which of ``candidates``, indexes that may serve, serves the clients of a bucket.

    It is the bucket's owner. If that cannot serve, the owners of other buckets are tried, which follow from the
    bucket's number: its clients are shared by all others according to their weights.
    """
    index = table[bucket]
    if index in candidates:
        return index
    size = len(table)
    for number in range(1, TRIES + 1):
        place = scale(word_hash(bucket, number), size)
        if table[place] in candidates:
            return table[place]
    for place in range(bucket, bucket + size):
        if table[place % size] in candidates:
            return table[place % size]
    raise ValueError("there is no candidate")


@lru_cache
def _shuffled(size: int) -> Sequence[int]:
    return array("I", sorted(range(size), key=lambda number: (word_hash(number, SEED), number)))


def _first_and_step(name: str, size: int) -> tuple[int, int]:
    digest = blake2b(name.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big") % size, int.from_bytes(digest[8:], "big") % (size - 1) + 1
