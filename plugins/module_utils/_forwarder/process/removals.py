# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What left the config: old generations end those of their sessions at its deadline.

The workers of an old generation do not know later configs, so the supervisor tells them what each one removes (a worker
that takes a config in place finds out itself: config_change.py). They keep the time, which outlives the supervisor.
UDP sessions are not in old generations, and a TCP connection needs no listener once it is accepted.

{"service": NAME, "after": seconds, "reason": for the log, "backends": [[name, family]]}; without the last, the whole
service.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..._shared.families import FAMILIES
from ..admission.refusal import BACKEND, SERVICE
from ..config.config import Config
from ..config.service import Service
from ..tcp.server import TcpServer

MOST_NAMES = 400  # in one message


def between(before: Config, after: Config) -> Iterator[dict]:
    """Yield what ``after`` does not have any more, as above."""
    services = {service.name: service for service in after.services}
    for service in before.services:
        common = {"service": service.name, "after": before.removal_timeout(service)}
        heir = services.get(service.name)
        if heir is None or heir.protocol != service.protocol:
            yield {**common, "reason": SERVICE}
            continue
        kept = _places(heir)
        backends = [list(key) for key, place in _places(service).items() if kept.get(key) != place]
        for names in _pieces(backends):
            yield {**common, "reason": BACKEND, "backends": names}


def _places(service: Service) -> dict:
    """Return {(name, family) of a backend: its ports}. Its address may change: sessions go on at the old one."""
    return {
        (backend.name, family): (backend.port, backend.last_port)
        for family in FAMILIES
        for backend in service.backends_of(family)
    }


def _pieces(names: list) -> Iterator[list]:
    return (names[start : start + MOST_NAMES] for start in range(0, len(names), MOST_NAMES))


def end_sessions(server: TcpServer, removal: dict) -> int:
    """Reset the sessions of a removal, whose deadline has come; return how many there were."""
    whole = "backends" not in removal
    backends = {tuple(key) for key in removal.get("backends", ())}
    relays = [
        relay
        for relay in server.sessions
        if relay.runtime.service.name == removal["service"]
        and (whole or (relay.backend is not None and (relay.backend.name, relay.backends.family) in backends))
    ]
    return server.end_removed(relays, removal["reason"])
