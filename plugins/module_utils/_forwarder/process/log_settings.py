# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Format and level of the log: as configured, unless an operator has set another level."""

from __future__ import annotations

from ..loop.log import Log
from .generation import Generation


class LogSettings:
    """``override`` is the level that an operator has set, or None; it lasts over reloads."""

    def __init__(self, log: Log):
        self.override: str | None = None
        self._log = log

    def of(self, generation: Generation) -> dict[str, str]:
        """Return {"format", "level"} for the processes of a generation."""
        return {"format": generation.config.log.format, "level": self.override or generation.config.log.level}

    def apply(self, generation: Generation):
        """Use the settings of a generation for the supervisor's own log."""
        settings = self.of(generation)
        self._log.set_format(settings["format"])
        self._log.set_level(settings["level"])

    def set_level(self, level: str | None, generation: Generation):
        """Set or (None) remove the override; ``generation`` is the live one."""
        self.override = level
        self._log.set_level(self.of(generation)["level"])
