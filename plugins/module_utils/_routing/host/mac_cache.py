# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The MACs that proxies answered from, over a reboot: a backend then knows its proxies before it has a network.

Until a proxy's MAC is known, nothing tells its packets from those of a direct client, and replies to them would leave
past it. This is a hint and no more: what a proxy answers outranks it, and so does another proxy that has this MAC now.
The host itself has learnt it and mends it as soon as it learns better, so it cannot be as stale as a fact in a cache.

The memory is a file: {"schema": 1, "macs": {OWNER: {"198.18.0.11": ["02:00:00:00:00:11"]}}}.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping

from ..document.model import address, mac
from . import files

NAME = "macs.json"
SCHEMA = 1

Known = dict[str, tuple[str, ...]]


class Macs:
    """Of addresses; ``path`` None remembers nothing."""

    def __init__(self, path: str | None = None):
        self._path = path

    def known(self, owner: str) -> Known:
        """What an owner's proxies answered from, by address; nothing for a file that cannot be understood."""
        return self._read().get(owner, {})

    def learn(self, owner: str, answered: Mapping[str, Iterable[str]], addresses: Iterable[str]) -> None:
        """Remember new answers, and of what is known already only the ``addresses`` that a document still names."""
        before = self._read()
        named = set(addresses)
        kept = {via: macs for via, macs in before.get(owner, {}).items() if via in named}
        after = {**before, owner: {**kept, **{via: tuple(macs) for via, macs in answered.items()}}}
        after = {name: known for name, known in after.items() if known}
        # A disk that is full is no reason to leave the host as it is.
        with contextlib.suppress(OSError):
            if self._path and after != before:
                files.write(self._path, json.dumps({"schema": SCHEMA, "macs": after}, indent=1, sort_keys=True) + "\n")

    def _read(self) -> dict[str, Known]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            data = json.loads((self._path and files.read(self._path)) or "{}")
            if data.get("schema") == SCHEMA:
                return {
                    str(owner): {address(via): tuple(map(mac, macs)) for via, macs in known.items()}
                    for owner, known in data["macs"].items()
                }
        return {}
