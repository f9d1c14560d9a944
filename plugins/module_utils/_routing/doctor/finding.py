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
    """``subject`` is the object it is about (an interface, a proxy, a rule); the rest are sentences.

    ``what`` says what is, ``why`` what it does to the path, ``fix`` the command or the variable that mends it.
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
        """All of it in one line."""
        parts = [self.what, self.why[:1].upper() + self.why[1:], self.fix and f"Fix: {self.fix}"]
        told = " ".join(_sentence(part) for part in parts if part)
        return f"{self.status.upper() if self.status == FAIL else self.status:4} {self.id}: {told}"


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def fail(subject: str, what: str, why: str, fix: str) -> Finding:
    """The path does not work, or would not."""
    return Finding(FAIL, subject, what, why, fix)


def warn(subject: str, what: str, why: str, fix: str) -> Finding:
    """The path works now; this may end it, or could not be told for certain."""
    return Finding(WARN, subject, what, why, fix)


def skip(what: str) -> Finding:
    """It could not be looked at; ``what`` says why."""
    return Finding(SKIP, "", what)


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """What is wrong first; among equals the order of the checks stays, which is that of cause and effect."""
    return sorted(findings, key=lambda finding: ORDER.index(finding.status))
