# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent of a backend has said last, and the state cells of a region in which the checker publishes it.

Only regions of a config with agents have these cells. They are the same for both families of a backend. Zeros: the
agent has said nothing yet.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

# The words of an agent. The first ones say whether the server works, the second ones what may be sent to it.
DOWN_WORDS = ("down", "stopped", "fail")
HEALTH_WORDS = ("", "up", *DOWN_WORDS)
ADMIN_WORDS = ("", "ready", "drain", "maint")
_TEXT_CELLS = 8
LONGEST_REASON = _TEXT_CELLS * 8  # bytes

_REASON = tuple(f"agent_reason_{number}" for number in range(_TEXT_CELLS))
_WORD = ("agent_health", "agent_admin", "agent_percent")  # the last is one more than the number; 0: none was said
#: The second to last is when the agent last answered, in monotonic milliseconds; the last the errno if it did not.
FIELDS = (*_WORD, *_REASON, "agent_answered", "agent_errno")


@dataclass(frozen=True)
class AgentWord:
    """What an agent has said so far; "" and None for what it has never mentioned."""

    health: str = ""  # one of HEALTH_WORDS
    admin: str = ""  # one of ADMIN_WORDS
    percent: int | None = None  # of the weight
    reason: str = ""  # of the health word

    @property
    def down(self) -> bool:
        """Whether it says that the server does not work."""
        return self.health in DOWN_WORDS

    def followed_by(self, other: AgentWord) -> AgentWord:
        """Return this word changed by a later one; what that does not mention stays."""
        return AgentWord(
            other.health or self.health,
            other.admin or self.admin,
            self.percent if other.percent is None else other.percent,
            other.reason if other.health else self.reason,
        )

    def __str__(self) -> str:
        return " ".join(word for word in (self.admin, self.health) if word)


def fields(config) -> tuple[str, ...]:
    """Return the state fields that a region of ``config`` needs for agents."""
    return FIELDS if any(service.health.agent for service in config.services) else ()


def in_region(region) -> bool:
    """Return whether a region has these fields; that of an early version has not."""
    return FIELDS[0] in region.record["fields"]["state"]


def read(region, target, with_reason=True) -> AgentWord:
    """Return the word that a region has for a target."""
    health, admin, percent = (region.state(field, target) for field in _WORD)
    text = b""
    if with_reason:
        text = b"".join(region.state(field, target).to_bytes(8, "little", signed=True) for field in _REASON)
    return AgentWord(
        HEALTH_WORDS[health], ADMIN_WORDS[admin], percent - 1 if percent else None, text.rstrip(b"\0").decode("latin-1")
    )


def write(region, target, word: AgentWord) -> None:
    """Publish a word; ``region.advance(EPOCH_HEALTH)`` has to follow."""
    percent = 0 if word.percent is None else word.percent + 1
    text = word.reason.encode("latin-1")[:LONGEST_REASON].ljust(LONGEST_REASON, b"\0")
    chunks = [int.from_bytes(text[at : at + 8], "little", signed=True) for at in range(0, LONGEST_REASON, 8)]
    cells = (HEALTH_WORDS.index(word.health), ADMIN_WORDS.index(word.admin), percent, *chunks)
    for field, cell in zip((*_WORD, *_REASON), cells):
        region.set_state(field, target, cell)


def answer(region, target) -> str:
    """Return how the agent answered the last time: "yes", "no: ERRNO" or "not asked"."""
    number = region.state("agent_errno", target)
    if number:
        return f"no: {errno.errorcode.get(number, number)}"
    return "yes" if region.state("agent_answered", target) else "not asked"
