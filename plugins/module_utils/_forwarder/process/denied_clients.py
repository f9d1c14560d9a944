# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The banned clients in a worker: it maps the tables of the supervisor, and ends the sessions of who is in them.

{"denied": version} comes with the descriptors of the tables (admission/deny_table.py), each time that they change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from ..admission.acl import Networks
from ..admission.deny_table import DENIED, Denied, Table
from ..config.config import Config
from .channel import DESCRIPTORS

if TYPE_CHECKING:
    from .worker import Worker

CUT_SECONDS, CUT_PAUSE = 0.004, 0.01  # of looking for sessions to end; then others get their turn
LOOKED_AT = 64  # sessions between two looks at the clock


def protected(config: Config) -> list[str]:
    """Return the networks of a config that can never be banned."""
    backends = [
        address
        for service in config.services
        for backend in service.backends
        for address in (backend.ipv4, backend.ipv6)
        if address
    ]
    # Load balancers have small networks; in a large one there may be clients as well, whom they name.
    proxies = [
        network
        for service in config.services
        for network in service.accept_proxy
        if int(network.rpartition("/")[2]) >= (64 if ":" in network else 24)
    ]
    virtual = [address for addresses in (config.virtual_addresses or {}).values() for address in addresses]
    return [*(config.never_ban or ()), *virtual, *dict.fromkeys(backends), *dict.fromkeys(proxies)]


class DeniedClients:
    """``tables`` are those that the worker has been spawned with."""

    def __init__(self, worker: Worker, tables: Iterable[Table]) -> None:
        self._worker = worker
        self._tables = tuple(tables)
        self._protected: Callable[[str], bool] = bool
        self._of: dict[str, Denied] = {}  # by name of a service; runtimes of earlier configs have them, too
        self._rest: Iterator[Any] | None = None  # sessions that are still to be looked at
        self._again = False  # whether the tables have changed meanwhile
        self.follow()

    def receive(self, message: dict) -> None:
        """Use the tables of a message from now on."""
        tables = [Table(number) for number in message.pop(DESCRIPTORS, ())]
        for table in tables:
            table.close()  # it stays mapped
        before, self._tables = self._tables, tuple(tables)
        self.follow()
        for table in before:
            table.unmap()
        self._again = True
        if self._rest is None:
            self._cut()

    def follow(self) -> None:
        """Let the services of the present config refuse who is banned."""
        worker = self._worker
        never, loop = Networks(protected(worker.config)), worker.loop
        self._protected = lambda address: address in loop.own_addresses or address in never
        for denied in self._of.values():
            denied.use(self._tables, self._protected)
        for name, runtime in worker.serving.runtimes.items():
            denied = self._denied(name)
            runtime.ban(denied if denied else None)

    def _denied(self, service: str) -> Denied:
        if service not in self._of:
            self._of[service] = Denied(service)
            self._of[service].use(self._tables, self._protected)
        return self._of[service]

    def _cut(self) -> None:
        """End sessions of banned clients, for CUT_SECONDS at a time; a change meanwhile means one more time."""
        worker, loop = self._worker, self._worker.loop
        if self._rest is None:
            self._again = False
            sessions = (*worker.tcp.sessions, *worker.udp.table.flows) if any(map(len, self._tables)) else ()
            self._rest = iter(sessions)
        end = loop.now() + CUT_SECONDS
        for number, session in enumerate(self._rest):
            if session.alive and self._denied(session.service.name).refusal(session.client_address[0]):
                self._end(session)
            if number % LOOKED_AT == 0 and loop.now() > end:
                loop.timers.add(loop.now() + CUT_PAUSE, self._cut)
                return
        self._rest = None
        if self._again:
            self._cut()

    def _end(self, session):
        worker = self._worker
        if hasattr(session, "abort"):
            session.runtime.counters.ended("denied")
            session.refusal = DENIED  # the cause, if it has no backend yet
            worker.loop.call(partial(session.abort, DENIED.text))
        else:
            session.listener.runtime.counters.ended("denied")
            worker.udp.end(session, DENIED.text)
