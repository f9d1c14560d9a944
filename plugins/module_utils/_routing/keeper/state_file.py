# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The keeper's published state: the status line for systemd, and the state file for programs.

``state.json`` in /run/l4proxy-keeper is written when something changed:
{"schema": 1, "pid": int, "archive": path or null, "story": the status line,
 "documents": {OWNER: {"state": "in place" | "waiting" | "refused", "since": time}},
 "problems": [sentence, ...],
 "silent": [{"proxy": name, "address": address, "since": time}, ...],  (dead next hops of routes with fallbacks)
 "announced": null or {"addresses": [address, ...], "state": "announced" | "withdrawing" | "not announced",
               "since": time, "why": sentence},   (addresses that routing daemons announce)
 "repairs": {"total": int, "by_kind": {"rule": int, ...}},
 "retiring": {OWNER: int}, "connections_cut": int,
                             (objects that are kept while connections need them; connections that limits have cut)
 "restored_at_start": int,   (objects that were missing when the keeper started, as after a boot)
 "undone": int,              (how many times in a row a repair was reverted)
 "last_repair": null or {"owner", "changes": [sentence, ...], "at": time, "seconds": float or null, "who": text}}
Times are RFC 3339 in UTC, to the millisecond. ``seconds`` is from the first notification to the end of the repair; null
without one. Counts survive a restart of the keeper, but not a reboot (/run).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..._shared.environment import running_archive
from ..host import files
from .reconcile_pass import PassResult

SCHEMA = 1
NAME = "state.json"
DAY = 86400


@dataclass(frozen=True)
class Repair:
    """The changes of one repair, when it was made (seconds of the epoch), and how long the host had been changed."""

    owner: str
    changes: tuple[str, ...]
    at: float
    seconds: float | None = None
    who: str = ""


@dataclass
class StateFile:
    """``path`` is None if no file is wanted; ``clock`` returns seconds of the epoch."""

    path: str | None = None
    clock: Callable[[], float] = time.time
    total: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    restored: int = 0
    reverted: int = 0
    cut: int = 0
    last: Repair | None = None
    # Read once: a role that updates the host points the link to another archive while this one runs.
    archive: str | None = field(default_factory=running_archive)
    _since: dict[str, tuple[str, float]] = field(default_factory=dict)
    _problems: list[str] = field(default_factory=list)
    _silent: dict[str, tuple[str, float]] = field(default_factory=dict)
    _announced: dict[str, Any] | None = None
    _retiring: dict[str, int] = field(default_factory=dict)
    _written: str = ""

    def load(self) -> None:
        """Continue the previous keeper's counts; ignore a file that is invalid."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            data = json.loads((self.path and files.read(self.path)) or "{}")
            if data.get("schema") == SCHEMA:
                repairs = data["repairs"]
                self.kinds = {str(kind): int(number) for kind, number in repairs["by_kind"].items()}
                self.total, self.restored = int(repairs["total"]), int(data["restored_at_start"])
                self.cut = int(data.get("connections_cut", 0))

    def add_repair(self, repair: Repair, kinds: tuple[str, ...]) -> None:
        self.total += 1
        for kind in kinds:
            self.kinds[kind] = self.kinds.get(kind, 0) + 1
        self.last = repair
        self._since.pop(repair.owner, None)

    def update(
        self,
        result: PassResult,
        problems: Iterable[str] = (),
        silent: Mapping[str, tuple[str, float]] | None = None,
        announced: dict[str, Any] | None = None,
    ) -> None:
        """Store the state of each document after a pass, and the proxies that do not answer: (name, since) by address.

        ``problems`` are sentences about these.
        """
        states = {owner: _state(owner, result) for owner in result.documents}
        for owner in set(self._since) - set(states):
            del self._since[owner]
        for owner, state in states.items():
            if self._since.get(owner, ("", 0.0))[0] != state:
                self._since[owner] = (state, self.clock())
        self._problems = [*result.problems, *problems]
        self._silent = dict(silent or {})
        self._announced = announced and {**announced, "since": timestamp(announced["since"])}
        self._retiring = {owner: len(outcome.retiring) for owner, outcome in result.outcomes.items()}

    @property
    def status_line(self) -> str:
        """The state in one line, for systemctl status."""
        placed = [since for state, since in self._since.values() if state == "in place"]
        parts = list(self._problems)
        if placed:
            owners = ", ".join(owner for owner, (state, _since) in self._since.items() if state == "in place")
            parts.append(f"keeping {owners}: in place since {self._time(max(placed))}")
        elif not parts:
            parts.append("nothing to keep: no documents")
        if self._announced:
            why = "" if self._announced["state"] == "announced" else f" ({self._announced['why']})"
            parts.append(f"{', '.join(self._announced['addresses'])}: {self._announced['state']}{why}")
        retiring = sum(self._retiring.values())
        if retiring:
            objects = (
                "object kept while connections need it" if retiring == 1 else "objects kept while connections need them"
            )
            parts.append(f"{retiring} replaced {objects}")
        if self.reverted and self.last:
            conflict = f"{self.last.owner}: the repair was reverted {self.reverted} times in a row{self._by()}"
            parts.insert(0, conflict)
        if self.last:
            parts.append(f"{self._repairs()}, last {self._time(self.last.at)} {_short(self.last.changes)}{self._by()}")
        elif self.total:
            parts.append(self._repairs())
        return "; ".join(parts)

    def write(self) -> None:
        """Write the state file if its content changed."""
        content = json.dumps(self._data(), indent=1) + "\n"
        if self.path and content != self._written:
            files.write(self.path, content)
            self._written = content

    def _by(self) -> str:
        return f" ({self.last.who})" if self.last and self.last.who else ""

    def _repairs(self) -> str:
        return f"{self.total} repair{'' if self.total == 1 else 's'}"

    def _time(self, at: float) -> str:
        form = "%H:%M:%S" if self.clock() - at < DAY else "%Y-%m-%d %H:%M:%S"
        return time.strftime(form, time.localtime(at))

    def _data(self) -> dict[str, Any]:
        documents = {owner: {"state": state, "since": timestamp(at)} for owner, (state, at) in self._since.items()}
        last: dict[str, Any] | None = None
        if self.last:
            repair = self.last
            seconds = None if repair.seconds is None else round(repair.seconds, 4)
            last = {"owner": repair.owner, "changes": list(repair.changes), "at": timestamp(repair.at)}
            last.update({"seconds": seconds, "who": repair.who})
        return {
            "schema": SCHEMA,
            "pid": os.getpid(),
            "archive": self.archive,
            "story": self.status_line,
            "documents": documents,
            "problems": self._problems,
            "silent": [
                {"proxy": name, "address": address, "since": timestamp(since)}
                for address, (name, since) in self._silent.items()
            ],
            "announced": self._announced,
            "repairs": {"total": self.total, "by_kind": self.kinds},
            "retiring": self._retiring,
            "connections_cut": self.cut,
            "restored_at_start": self.restored,
            "undone": self.reverted,
            "last_repair": last,
        }


def _state(owner: str, result: PassResult) -> str:
    if owner in result.outcomes:
        outcome = result.outcomes[owner]
        return "waiting" if outcome.waiting or outcome.missing or outcome.left_out else "in place"
    return "waiting" if any(sentence.startswith(f"{owner}: ") for sentence in result.blocked) else "refused"


def _short(changes: tuple[str, ...]) -> str:
    more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
    return f"{changes[0]}{more}"


def timestamp(at: float) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    seconds, milliseconds = divmod(round(at * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds:03d}Z"
