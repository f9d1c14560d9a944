# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A config taken in place: a worker goes from one generation to the next and keeps its sessions.

prepare() makes the runtimes of the new config and has no effect on what the worker serves. use() switches:

- New connections are served as the new config says, on the new and the kept listening sockets. Connections that are
  queued in a listener that left are accepted first, then the worker closes its copy of that socket.
- A session whose service and backend (name, family, address, port) are still there moves to the new runtime, and what
  counts it moves to the new region. All other sessions stay counted in the old region until they end.
- The worker calls ``worker.released(number)`` once for each older generation, as soon as it counts nothing in that
  region any more (maybe within use()), and closes the region.

The row of this worker's slot in the new region is not empty: before ``use`` the supervisor copies the old gauges and
the numbers per client into the rows of all workers, so that limits hold while some workers have switched and others
have not. So use() first calls ``region.reset_gauges(slot)``, and then counts what moves. The numbers per client that
are rates are in the new region already; use() keeps them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

    from ..config.config import Config
    from ..counters.shared_memory import Region
    from .worker import Worker


class Refused(Exception):
    """A worker cannot take a config in place; the message is one sentence."""


class Change:
    """A prepared change; either use() or discard() follows, once."""

    def use(self) -> None:
        """Switch the worker to the new config.

        ``worker.enter(number, config, region)`` sets what is not TCP or UDP, such as the number of the generation and
        the format of the log: what comes from ``log.kind()`` is made after it. use() must not fail. If it raises all
        the same, the supervisor replaces the worker, which drains.
        """

    def discard(self) -> None:
        """Close the sockets and the region; the worker goes on with its config."""


def prepare(worker: Worker, number: int, config: Config, region: Region, sockets: dict[str, socket.socket]) -> Change:
    """Return the change of ``worker`` to the generation ``number``; raise Refused or any other exception.

    ``region`` is the new generation's, ``sockets`` are the listening sockets that ``config`` needs and that the worker
    does not have, by name (listeners.py). They belong to the Change once it is returned; after an exception the caller
    closes them.
    """
    raise Refused("this worker cannot take a config in place yet")
