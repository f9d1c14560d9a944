# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""UDP when a worker takes a config in place (process/config_change.py): which sessions move to the new config, and how.

A session moves if its service, its listener and its backend (name, family, and the port for that listener) are still
there; if the backend has another address, a conversation goes on at the old one. For all others an early end is better
than a late one, unless the two ends are in a conversation: what the client sends next begins a session with a backend
that is there. So a session that never got an answer, or that was a request and its response, ends at once; but a
request has ANSWER_TIME for its response. A conversation goes on until it ends or its deadline has come, and its
listener, if that left as well, is kept until then for it alone. If the kernel forwards the service from now on, the
client's next datagram reaches a backend as well, so conversations end like requests.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

from ..admission.refusal import BACKEND, LISTENER, SERVICE, TO_KERNEL
from ..loop.poller import READ
from .eviction import ANSWER_TIME, BRIEF
from .server import address_tuple
from .takeover import find_place

if TYPE_CHECKING:
    from ..backends.service_runtime import ServiceRuntime
    from .flow_table import Flow
    from .listener import UdpListener
    from .server import UdpServer

MOST_BATCHES = 64  # of datagrams that are read from a socket before it is closed


def use(server: UdpServer, listeners: dict[str, UdpListener], in_kernel: Collection[str] = ()) -> None:
    """Serve ``listeners`` (by name) instead of the earlier ones, and move the sessions that have a place there.

    ``in_kernel`` are the names of services that the kernel forwards from now on, as soon as their sockets are closed.
    """
    server.in_kernel = in_kernel
    earlier, leaving = server.listeners, server.leaving
    returned = [listener for listener in leaving if listener.name in listeners]
    for listener in [*returned, *(listener for listener in earlier.values() if listener.service in in_kernel)]:
        _read_rest(listener)
    for name, listener in listeners.items():
        before = earlier.pop(name, None)
        if before is None:
            continue
        if before.service != listener.service:  # what arrives at this socket belongs to another service now
            for flow in list(before.flows.values()):
                _end(server, flow, SERVICE)
        listener.follow(before)
    server.listeners, server.leaving = listeners, [*earlier.values(), *leaving]
    places: dict[tuple, tuple | None] = {}
    brief = []
    now = server.loop.now()
    for flow in list(server.table.flows):
        key = flow.listener.name, flow.listener.service, flow.backend.name, flow.target
        if key not in places:
            places[key] = find_place(server, *key)
        place = places[key]
        if place is not None and (_has_address(place, flow.target) or _is_conversation(flow)):
            _move(flow, *place)
        elif flow.listener in returned:  # its socket is closed, for its clients have to reach the new one
            _end(server, flow, reason(server, flow))
        elif not _is_conversation(flow):
            brief.append(flow)
    brief += [flow for flow in server.table.flows if flow.listener.service in in_kernel and _is_conversation(flow)]
    _end_brief(server, brief, now)
    for listener in returned:
        listener.close()
    server.listen(listeners, [listener for listener in server.leaving if listener not in returned])
    close_unused(server)


def _end(server, flow, reason):
    server.count("removal_ended")
    server.end(flow, reason)


def _read_rest(listener):
    """Forward what clients have sent to a socket that will be closed."""
    for _batch in range(MOST_BATCHES):
        listener.ready(READ)


def _move(flow: Flow, listener: UdpListener, backends, index: int) -> None:
    """Go on at a new listener with the same backend, which has another ``index`` there."""
    flow.count_traffic()  # at the place where it was forwarded
    before, runtime = flow.listener, listener.runtime
    before.runtime.counters.finished()
    runtime.counters.taken_over()
    flow.backends.release(flow.index)
    backends.adopt(index)
    flow.backends, flow.index, flow.timeout = backends, index, runtime.service.idle_timeout
    flow.limiter = runtime.limiter
    if flow.limiter is not None:
        flow.limiter.adopt(flow.client[0])
    if before.flows is not listener.flows:
        del before.flows[flow.client_key]
        listener.flows[flow.client_key] = flow
    flow.listener = listener


def _has_address(place, target):
    """Whether the backend of a place still has the address ``target``."""
    _listener, backends, index = place
    return address_tuple(backends.backends[index].address(backends.family), target[1]) == target


def _is_conversation(flow):
    return flow.answered and flow.datagrams > BRIEF


def _may_stay(server, flow):
    return flow.listener.service not in server.in_kernel


def _end_brief(server, flows, now):
    """End the flows, but for requests that may still be answered: these are looked at once more."""
    waiting = []
    for flow in flows:
        if flow.answered or now - flow.started >= ANSWER_TIME:
            _end(server, flow, reason(server, flow))
        else:
            waiting.append((flow, flow.listener))
    if waiting:
        server.loop.timers.add(now + ANSWER_TIME, partial(_end_waiting, server, waiting))


def _end_waiting(server, waiting):
    for flow, listener in waiting:
        if flow.listener is listener and flow.alive and not (_is_conversation(flow) and _may_stay(server, flow)):
            _end(server, flow, reason(server, flow))


def reason(server: UdpServer, flow: Flow) -> str:
    """Return why a session could not move, for the log."""
    if not _may_stay(server, flow):
        return TO_KERNEL
    listener = server.listeners.get(flow.listener.name)
    if listener is not None and listener.service == flow.listener.service:
        return BACKEND
    kept = any(one.service == flow.listener.service for one in server.listeners.values())
    return LISTENER if kept else SERVICE


def end_sessions(server: UdpServer, runtime: ServiceRuntime) -> int:
    """End all sessions of an earlier runtime, whose deadline has come; return how many there were."""
    flows = [flow for flow in server.table.flows if flow.listener.runtime is runtime]
    for flow in flows:
        _end(server, flow, reason(server, flow))
    return len(flows)


def close_unused(server: UdpServer) -> None:
    """Close the listeners that left and have no more sessions."""
    for listener in [listener for listener in server.leaving if not listener.flows]:
        listener.close()
        server.leaving.remove(listener)
