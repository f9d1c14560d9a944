# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One result of one check."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

FAIL, WARN, SKIP, OK = "fail", "warn", "skip", "ok"
ORDER = (FAIL, WARN, SKIP, OK)


@dataclass(frozen=True)
class Finding:
    """``subject`` is the object concerned (an interface, a proxy, a rule); the other fields are sentences.

    ``what`` describes the problem, ``why`` its effect on the path, ``fix`` the command or variable that solves it.
    """

    status: str
    subject: str
    what: str
    why: str = ""
    fix: str = ""
    id: str = ""

    def to_dict(self) -> dict[str, str]:
        return {"id": self.id, **{name: value for name, value in asdict(self).items() if name != "id"}}

    @property
    def line(self) -> str:
        """The whole finding on one line."""
        parts = [self.what, self.why[:1].upper() + self.why[1:], self.fix and f"Fix: {self.fix}"]
        text = " ".join(part if part.endswith(".") else f"{part}." for part in parts if part)
        return f"{self.status.upper() if self.status == FAIL else self.status:4} {self.id}: {text}"


def fail(subject: str, what: str, why: str, fix: str) -> Finding:
    """The path is broken, or will be once the document is applied."""
    return Finding(FAIL, subject, what, why, fix)


def warn(subject: str, what: str, why: str, fix: str) -> Finding:
    """The path may break, or the doctor cannot be sure that it works."""
    return Finding(WARN, subject, what, why, fix)


def fail_or_warn(certain: bool, subject: str, what: str, why: str, fix: str) -> Finding:
    """A failure if ``certain``, else a warning."""
    return Finding(FAIL if certain else WARN, subject, what, why, fix)


def skip(what: str) -> Finding:
    """The check could not run; ``what`` says why."""
    return Finding(SKIP, "", what)


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Failures first, then warnings; findings of one status keep the order of the checks."""
    return sorted(findings, key=lambda finding: ORDER.index(finding.status))
