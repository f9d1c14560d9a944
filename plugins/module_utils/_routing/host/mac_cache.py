# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A cache of the MACs that proxies answered from, so that a backend knows them at boot before the network is up.

Until the MAC of a proxy is known, its packets cannot be distinguished from those of direct clients, and replies to them
would bypass it. A cached MAC is only a fallback: an answer of the proxy takes precedence, and it is not used if another
proxy has that MAC now.

The cache is a file: {"schema": 1, "macs": {OWNER: {"198.18.0.11": ["02:00:00:00:00:11"]}}}.
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
    """The cached MACs of each owner's proxies. With ``path`` None nothing is stored."""

    def __init__(self, path: str | None = None):
        self._path = path

    def known(self, owner: str) -> Known:
        """The MACs of an owner's proxies by address; empty if the file is invalid."""
        return self._read().get(owner, {})

    def learn(self, owner: str, answered: Mapping[str, Iterable[str]], addresses: Iterable[str]) -> None:
        """Store new answers, and keep known ones only for the ``addresses`` that the document still lists."""
        before = self._read()
        named = set(addresses)
        kept = {via: macs for via, macs in before.get(owner, {}).items() if via in named}
        after = {**before, owner: {**kept, **{via: tuple(macs) for via, macs in answered.items()}}}
        after = {name: known for name, known in after.items() if known}
        # A full disk must not prevent the changes to the host.
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
