# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the line of an agent to its word, and what counts for a backend: operator, agent and health checks. Pure.

The line is that of HAProxy's agent-check (configuration.txt): words in any order and case, between spaces, tabs and
commas; after "#" a text for people. What a line does not mention stays as it was: "up" ends "down", "stopped" and
"fail"; "ready" ends "drain" and "maint"; only another percentage changes a percentage.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..counters.agent_state import ADMIN_WORDS, HEALTH_WORDS, LONGEST_REASON, AgentWord
from ..counters.shared_memory import ADMIN_STATES, DOWN, DRAINING, MAINTENANCE, READY, STATES, UP

MOST_PERCENT = 1000
_PERCENT = re.compile(r"(?:weight:)?([0-9]{1,9})%\Z")
_ADMIN_STATES = {"drain": DRAINING, "maint": MAINTENANCE}


def parse(line: bytes) -> AgentWord | None:
    """Return what a line says; None if it has no word that is known. Others, like ``maxconn:N``, are ignored."""
    words, _sharp, reason = line.decode("latin-1").partition("#")
    health = admin = ""
    percent = None
    for word in re.split(r"[ \t,]+", words.lower()):
        match = _PERCENT.match(word)
        if match:
            percent = min(int(match[1]), MOST_PERCENT)
        elif word in HEALTH_WORDS[1:]:
            health = word
        elif word in ADMIN_WORDS[1:]:
            admin = word
    if not (health or admin or percent is not None):
        return None
    reason = re.sub(r"[^ -~]", "?", reason.strip()) if health else ""
    return AgentWord(health, admin, percent, reason[:LONGEST_REASON])


class Standing(NamedTuple):
    """What counts for a backend: an override as of an operator, its health, and its weight."""

    admin: int
    health: int
    weight: float

    @property
    def state(self) -> str:
        """What is shown of it."""
        return STATES[self.health] if self.admin == READY else ADMIN_STATES[self.admin]


def standing(word: AgentWord, admin: int, health: int, weight: int, override: int) -> Standing:
    """Return what counts if the agent says ``word``.

    ``admin`` and ``override`` (of the weight; 0: none) are the operator's and come before the agent's. ``health`` is
    that of the health checks, ``weight`` that of the config. A backend whose weight is 0 drains.
    """
    percent = 100 if word.percent is None or override else word.percent
    if admin == READY:
        admin = _ADMIN_STATES.get(word.admin, READY if percent else DRAINING)
    weight = override or weight
    return Standing(admin, DOWN if word.down else health, weight if percent in (0, 100) else weight * percent / 100)


def keeps_out(word: AgentWord, override: int) -> bool:
    """Return whether the agent alone gives a backend no new connections; ``override`` as for standing()."""
    return standing(word, READY, UP, 1, override).state != STATES[UP]
