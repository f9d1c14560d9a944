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
from .run import FileChange, Run
from .state import State


@dataclass(frozen=True)
class Outcome:
    """``changes`` are sentences; ``diff`` is a list of Ansible's before/after pairs; ``after`` is the resulting state.

    ``waiting`` lists what was applied without for now and needs another run (the MAC of a silent proxy), ``missing``
    what could not be applied yet (``Options.partial``), ``left_out`` the rules that were left out because their source
    is an address of this host (``Options.partial``).
    ``retiring`` lists what is kept for a while, and ``next_due`` is the number of seconds until another run with
    ``now`` may remove some of it (None: nothing retires).
    """

    changes: tuple[str, ...]
    diff: tuple[dict[str, str], ...]
    waiting: tuple[str, ...]
    warnings: tuple[str, ...]
    after: State
    retiring: tuple[str, ...] = ()
    next_due: float | None = None
    missing: tuple[str, ...] = ()
    # The kind of each change, in the same order: rule, route, address, marks, sysctl, file.
    kinds: tuple[str, ...] = ()
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
    if run.file_change:
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
        next_due=None if now is None else drain.next_due(run.document, now),
        missing=run.missing,
        kinds=tuple(kind for _sentence, kind in sentences),
        left_out=run.left_out,
    )


def _file_difference(change: FileChange) -> dict[str, str]:
    texts = {"before": change.before or "", "after": change.after or ""}
    return {**texts, "before_header": change.path, "after_header": change.path}
