# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What could not be bound when the forwarder started is bound as soon as that is possible.

A start serves all that it can bind (Generation.failed has the rest), so that one port which another program holds does
not stop all services. A listener that can be bound now needs a new generation of the same config.
"""

from __future__ import annotations

import socket
from typing import Protocol

from ..admin.server import Servers
from . import listeners
from .generation import Generations
from .reload_results import ReloadResults
from .supervisor_loop import SupervisorLoop

INTERVAL = 5.0  # seconds between two attempts


class Owner(Protocol):
    """What this uses of the supervisor."""

    def may_reload(self) -> bool:
        """Whether a config is live, and nothing changes."""

    def serve_again(self) -> None:
        """Called when a listener of the live config can be bound: make the same config the next generation."""


class Rebinding:
    """Attempts to bind what failed, every INTERVAL seconds."""

    def __init__(
        self,
        loop: SupervisorLoop,
        generations: Generations,
        listening: dict[str, socket.socket],
        servers: Servers,
        results: ReloadResults,
        owner: Owner,
    ):
        self._loop = loop
        self._generations = generations
        self._listening = listening
        self._servers = servers
        self._results = results
        self._owner = owner

    def attempt(self):
        """Bind what can be bound now, and plan the next attempt."""
        self._loop.call_later(INTERVAL, self.attempt)
        live = self._generations.live
        if not (live and live.failed and live.config and self._owner.may_reload()):
            return
        new_servers = self._servers.bind_missing(live.config)[0]
        if new_servers:
            self._servers.settle(live.config, new_servers)
            live.failed = {name: reason for name, reason in live.failed.items() if name not in new_servers}
            self._results.listening_again(live, new_servers)
        bound = listeners.bind_missing(live.config, live.slots, self._listening, alone=True, failed={})
        if bound:
            listeners.close_all(bound)
            self._owner.serve_again()
