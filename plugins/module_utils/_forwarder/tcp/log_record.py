# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the log and the ``sessions`` command say of a TCP connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .state_table import State

if TYPE_CHECKING:
    from .relay import Relay

_CONNECTING = State.CONNECTING  # before Python 3.12, access to an enum member costs 0.1 to 0.4 µs

#: Durations in seconds, sizes in bytes. The order is that of values().
FIELDS = (
    "client",
    "client_port",
    "backend",
    "source",
    "source_step",
    "attempts",
    "bytes_to_backend",
    "bytes_to_client",
    "duration",
    "ended",
)


def values(relay: Relay, now: float) -> tuple:
    """Return the values of FIELDS for a relay.Relay."""
    connected = relay.upstream is not None and relay.state is not _CONNECTING
    client, client_port = relay.client_address[:2]
    return (
        client,
        client_port,
        relay.backend.name if relay.backend else None,
        relay.own_source or client if connected else None,
        relay.step if connected else None,
        relay.attempts,
        relay.upstream.sent if connected else 0,
        relay.client.sent,
        round(now - relay.started, 6),
        relay.ended,
    )


def fields(relay: Relay, now: float) -> dict[str, Any]:
    """Return all fields as a dictionary, with service and listener; ``via`` only if a proxy sent a PROXY header."""
    record = {"service": relay.service.name, "listener": str(relay.acceptor.listener)}
    record.update(zip(FIELDS, values(relay, now)))
    if relay.via is not None:
        record["via"] = relay.via
    return record
