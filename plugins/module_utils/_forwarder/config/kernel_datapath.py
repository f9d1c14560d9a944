# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a service cannot have with ``datapath: kernel``, where the kernel rewrites packets and nobody accepts. Pure.

docs/docsite/rst/services.rst shows it to users.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..._shared.families import SPELLED
from . import defaults

if TYPE_CHECKING:
    from .service import Service

_FORWARDER = "datapath: forwarder"
_REMEDY = f"remove it, or use {_FORWARDER}"
_NO_COUNTS = f"the kernel does not count the connections of backends before it chooses one; {_REMEDY}"
_NO_CONNECTS = f"the kernel forwards the client's own packets and makes no connections; {_REMEDY}"
_ONE_ADDRESS = (
    "the kernel must know from a backend's address and port which address and port clients use; give one of each"
    f" family, or use {_FORWARDER}"
)
_NO_RANGES = f"a range of ports needs the forwarder; use one port, or {_FORWARDER}"
_NO_STARTS = f"with the kernel, only the end of a connection is logged; {_REMEDY}"
_NO_TIMEOUTS = f"the kernel has the same timeouts for the connections of all services; {_REMEDY}"
_SAME_WEIGHTS = f"all proxies must always have the same weights, so that connections can outlive a proxy; {_REMEDY}"


def kernel_refusals(service: Service) -> list[tuple[str, str]]:
    """Return (key, sentence) for each option of a service that the kernel datapath does not have.

    The key is relative to the service. A value that was refused before (None, "" or 0) is not refused again. Options
    with their default value are accepted: services.rst says what is different.
    """
    return [*_of_listeners(service), *_of_service(service), *_of_backends(service)]


def _of_listeners(service: Service) -> Iterator[tuple[str, str]]:
    entry, seen = -1, set()
    for listener in service.listen:
        if listener.offset:
            if listener.offset == 1:
                yield f"listen[{entry}]", _NO_RANGES
            continue
        entry += 1
        key = f"listen[{entry}]"
        if listener.wildcard:
            yield key, f"{listener.address} is every address of the proxy; {_ONE_ADDRESS}"
        if listener.address and listener.family in seen:
            yield key, f"{listener} is the second {SPELLED[listener.family]} listen address; {_ONE_ADDRESS}"
        seen |= {listener.family} if listener.address else set()


def _of_service(service: Service) -> Iterator[tuple[str, str]]:
    idle = defaults.UDP_IDLE_TIMEOUT if service.protocol == "udp" else defaults.IDLE_TIMEOUT
    rows = (
        ("accept_proxy", service.accept_proxy, f"the kernel reads no PROXY headers; {_REMEDY}"),
        ("balance", service.balance == "least_connections", f"least_connections: {_NO_COUNTS}"),
        ("hash_balance_factor", service.hash_balance_factor, _NO_COUNTS),
        ("retries", _changed(service.retries, defaults.RETRIES), _NO_CONNECTS),
        ("connect_timeout", _changed(service.connect_timeout, defaults.CONNECT_TIMEOUT), _NO_CONNECTS),
        ("connect_deadline", _changed(service.connect_deadline, defaults.CONNECT_DEADLINE), _NO_CONNECTS),
        ("idle_timeout", _changed(service.idle_timeout, idle), _NO_TIMEOUTS),
        ("half_closed_timeout", _changed(service.half_closed_timeout, defaults.HALF_CLOSED_TIMEOUT), _NO_TIMEOUTS),
        ("keepalive", service.keepalive and _changed(service.keepalive, defaults.KEEPALIVE), _NO_TIMEOUTS),
        ("tcp_user_timeout", service.tcp_user_timeout, _NO_TIMEOUTS),
        ("source_fallback", service.source_fallback == "own", f"own: the kernel keeps the client's address; {_REMEDY}"),
        ("slow_start", service.slow_start, _SAME_WEIGHTS),
        ("health.agent", service.health.agent, _SAME_WEIGHTS),
        ("log_start", service.log_start, _NO_STARTS),
        ("log_every", service.log_every, _NO_STARTS),
    )
    return ((key, sentence) for key, refused, sentence in rows if refused)


def _changed(value: float | None, bounds: defaults.Range) -> bool:
    return value not in (None, bounds.default)


def _of_backends(service: Service) -> Iterator[tuple[str, str]]:
    for index, backend in enumerate(service.backends):
        rows = (
            ("port", backend.last_port, _NO_RANGES),
            ("send_proxy", backend.send_proxy, f"the kernel sends no PROXY headers; {_REMEDY}"),
            ("max_connections", backend.max_connections, _NO_COUNTS),
        )
        yield from ((f"backends[{index}].{key}", sentence) for key, refused, sentence in rows if refused)
