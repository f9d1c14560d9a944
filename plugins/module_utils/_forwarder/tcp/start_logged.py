# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay of a service with ``log_start``. A class of its own, so that other services pay nothing for the option."""

from __future__ import annotations

from ..backends import open_log
from .relay import ACTIONS, Relay
from .state_table import Action, compiled


class StartLogged(Relay):
    """Logs that it begins to forward."""

    __slots__ = ()

    def _forward(self):
        open_log.log_start(self.loop.log, "connection", self, self.loop.now())
        super()._forward()


StartLogged.table = compiled({**ACTIONS, Action.FORWARD: StartLogged._forward})
