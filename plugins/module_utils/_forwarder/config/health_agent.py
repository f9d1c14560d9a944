# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The agents of a service's backends: their options, and how they are read from the document."""

from __future__ import annotations

from dataclasses import dataclass

from . import defaults
from .validation import REQUIRED, Fields


@dataclass(frozen=True)
class HealthAgent:
    """Where the agent of each backend listens, and how often it is asked (None: as often as backends are probed)."""

    port: int
    interval: float | None = None


def read_agent(part: Fields) -> HealthAgent | None:
    """Return the HealthAgent of a section ``health``, None if it has none."""
    section = part.section("agent")
    if part.data is None or "agent" not in part.data:
        return None
    agent = HealthAgent(
        port=section.integer("port", "a port", *defaults.HEALTH_PORT[:2], REQUIRED),
        interval=section.seconds("interval", *defaults.AGENT_INTERVAL),
    )
    section.done()
    return agent
