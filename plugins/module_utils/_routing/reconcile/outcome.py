# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a run did, or in check mode would do, as its callers report it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..document import formatting, schema
from ..document.documents import SECTIONS
from ..document.model import Sysctl
from . import drain
from .difference import difference
from .run import Cut, FileChange, Run
from .state import State


@dataclass(frozen=True)
class Outcome:
    """What was done, or in check mode would be done. All strings are sentences or lines for people."""

    changes: tuple[str, ...]
    # Ansible's before/after pairs.
    diff: tuple[dict[str, str], ...]
    # What is still unknown and needs another run, such as the MAC of a silent proxy.
    waiting: tuple[str, ...]
    warnings: tuple[str, ...]
    # What the owner has afterwards.
    after: State
    # What is kept for a while although the document no longer lists it.
    retiring: tuple[str, ...] = ()
    # Connections that still needed objects whose time was over.
    cut: tuple[Cut, ...] = ()
    # Seconds until another run with ``now`` may remove some of that; None if nothing retires.
    next_due: float | None = None
    # Why objects could not be applied yet (``Options.partial``).
    missing: tuple[str, ...] = ()
    # The kind of each change, in the same order: rule, route, address, marks, sysctl, file.
    kinds: tuple[str, ...] = ()
    # Why rules were left out: their source is an address of this host (``Options.partial``).
    left_out: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.changes)

    @property
    def owned(self) -> dict[str, Any]:
        """The owned set as sections of a document."""
        held = [Sysctl(setting.name, setting.value) for setting in self.after.sysctls if setting.held]
        sections = {**{name: getattr(self.after, name) for name in SECTIONS}, "sysctls": held}
        return {
            name: [schema.dump(value) for value in sorted(values, key=lambda value: value.order)]
            for name, values in sections.items()
        }


def outcome_of(run: Run) -> Outcome:
    sentences = [(change.sentence, change.kind) for change in run.changes]
    diffs = [difference(run.have, run.after)]
    if run.file_change and not run.file_change.silent:
        sentences.append((run.file_change.sentence, "file"))
        diffs.append(_file_difference(run.file_change))
    now = run.options.now
    return Outcome(
        tuple(sentence for sentence, _kind in sentences),
        tuple(pair for pair in diffs if pair),
        run.waiting,
        run.warnings,
        run.after,
        retiring=tuple(map(formatting.describe, drain.retiring_until(run.document))),
        cut=run.cut,
        next_due=None if now is None else drain.next_due(run.document, now),
        missing=run.missing,
        kinds=tuple(kind for _sentence, kind in sentences),
        left_out=run.left_out,
    )


def _file_difference(change: FileChange) -> dict[str, str]:
    texts = {"before": change.before or "", "after": change.after or ""}
    return {**texts, "before_header": change.path, "after_header": change.path}
