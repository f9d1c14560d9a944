# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP when a worker takes a config in place (process/config_change.py): which sessions move to the new config, and how.

A session moves if its service and its backend (name, family, and port) are still there. Its listener may be gone, which
only new connections need. The backend may have another address: a change of the return path strategy gives it one, and
the connection lives on at the old one. A session that waits for its PROXY header has no backend yet, so it needs only
the service. One that is connecting to a backend that left or has another address goes on to the next one, which blames
nobody and counts as no retry. All others stay with the runtime, and so in the region, of their own config.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from ..admission.refusal import BACKEND, SERVICE
from .state_table import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..backends.balancer import Backends
    from ..backends.service_runtime import ServiceRuntime
    from .acceptor import Acceptor
    from .relay import Relay
    from .server import TcpServer

Indexes = dict[str, dict[int, int]]  # family -> {index of a backend that is still there: its new index}


class Places:
    """Finds the acceptor of ``acceptors``, the new ones, at which a session goes on."""

    def __init__(self, acceptors: Iterable[Acceptor]) -> None:
        self._new = {_identity(acceptor): acceptor for acceptor in acceptors}
        self._runtimes = {acceptor.runtime.service.name: acceptor.runtime for acceptor in acceptors}
        self._found: dict[Acceptor, tuple[Acceptor, Indexes] | None] = {}
        self._common: dict[tuple[Backends, Backends], dict[int, int]] = {}

    def of(self, acceptor: Acceptor) -> tuple[Acceptor, Indexes] | None:
        """Return (new acceptor, Indexes) for the sessions of an earlier one, None if its service is gone."""
        if acceptor not in self._found:
            runtime = self._runtimes.get(acceptor.runtime.service.name)
            new = self._new.get(_identity(acceptor)) or (acceptor.without_listener(runtime) if runtime else None)
            self._found[acceptor] = (new, self._indexes(acceptor, new)) if new else None
        return self._found[acceptor]

    def _indexes(self, old, new):
        indexes: Indexes = {}
        for family, backends in old.runtime.backends.items():
            heir = new.runtime.backends.get(family)
            if heir is None:
                indexes[family] = {}
                continue
            if (backends, heir) not in self._common:
                self._common[backends, heir] = heir.places_of(backends)
            before, after = old.targets[family], new.targets[family]
            indexes[family] = {
                index: place
                for index, place in self._common[backends, heir].items()
                # The port of a range depends on the listener, which may be outside the new range.
                if before[index][1] == after[place][1] <= (heir.backends[place].last_port or after[place][1])
            }
        return indexes


def _identity(acceptor):
    return acceptor.runtime.service.name, acceptor.slot, acceptor.listener.address, acceptor.listener.port


def use(
    server: TcpServer, acceptors: list[Acceptor], replaced: Iterable[tuple[ServiceRuntime, ServiceRuntime]]
) -> None:
    """Serve ``acceptors`` instead of the earlier ones, and move the sessions that have a place there.

    ``replaced`` are the pairs (earlier, new runtime) of the services that are in both configs.
    """
    earlier, server.acceptors = {acceptor.name: acceptor for acceptor in server.acceptors}, acceptors
    for acceptor in acceptors:
        before = earlier.pop(acceptor.name, None)
        if before is not None:
            before.runtime.acceptors = []
            acceptor.follow(before)
    for acceptor in earlier.values():
        acceptor.runtime.acceptors = []
        acceptor.close()
    _move_sessions(server, Places(acceptors))
    for old, new in replaced:
        if old.paused and new.limiter is not None and new.limiter.pauses and new.limiter.full:
            new.pause(True)
            server.check_service_later(new)
    server.update()


def end_sessions(server: TcpServer, runtime: ServiceRuntime) -> int:
    """Reset all sessions of an earlier runtime, whose deadline has come; return how many there were."""
    relays = [relay for relay in server.sessions if relay.runtime is runtime]
    services = {acceptor.runtime.service.name for acceptor in server.acceptors}
    return server.end_removed(relays, BACKEND if runtime.service.name in services else SERVICE)


def _move_sessions(server, places):
    """Move all sessions that have a place; those without a backend choose one only then, when all are counted."""
    without = []
    clients = defaultdict(list)  # limiter -> addresses of the clients whose connections it has to count
    for relay in list(server.sessions):
        place = places.of(relay.acceptor)
        if place is None:
            continue
        acceptor, indexes = place
        if relay.backends is None:
            _count_at(relay, acceptor)
            continue
        here = indexes[relay.backends.family]
        index = here.get(relay.index)
        if index is not None and (relay.state is not State.CONNECTING or _same_address(relay, acceptor, index)):
            _move(relay, acceptor, index)
            if relay.state is State.CONNECTING:
                _translate_tried(relay, here)
        elif relay.state is State.CONNECTING:
            relay.backends.release(relay.index)
            _count_at(relay, acceptor)
            without.append(relay)
        else:
            continue
        limiter = relay.limiter = acceptor.runtime.limiter
        if limiter is not None:
            clients[limiter].append(relay.client_address[0])
    for limiter, addresses in clients.items():
        limiter.adopt_all(addresses)
    for relay in without:
        server.loop.call(relay.choose_again)


def _same_address(relay, acceptor, index):
    return acceptor.runtime.backends[relay.backends.family].same_address(index, relay.backends, relay.index)


def _count_at(relay: Relay, acceptor: Acceptor) -> None:
    """Let the service of a new acceptor count a session."""
    relay.runtime.counters.finished()
    relay.acceptor, relay.runtime = acceptor, acceptor.runtime
    relay.runtime.counters.taken_over()


def _move(relay: Relay, acceptor: Acceptor, index: int) -> None:
    """Go on at a new acceptor with the same backend, which has another ``index`` there."""
    old = relay.backends
    if relay.state is not State.CONNECTING:
        relay.count_bytes()  # at the place where they were forwarded
    new = relay.backends = acceptor.runtime.backends[old.family]
    old.release(relay.index)
    new.adopt(index)
    relay.index, relay.backend = index, new.backends[index]
    _count_at(relay, acceptor)


def _translate_tried(relay: Relay, indexes: dict[int, int]) -> None:
    """Let a session that is connecting pass over the same backends as before, and those with the client's address."""
    from_proxy = relay.via is not None
    own = relay.runtime.backends_for(relay.client_address[0], relay.loop.own_addresses, from_proxy)[2]
    relay.tried = tuple({**dict.fromkeys(own), **{indexes[one]: None for one in relay.tried if one in indexes}})
    if relay._own_backends:  # else they were tried already
        relay._own_backends = own
