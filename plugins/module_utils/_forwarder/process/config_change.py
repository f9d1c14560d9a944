# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A config taken in place: a worker goes from one generation to the next and keeps its sessions.

prepare() makes the runtimes of the new config and has no effect on what the worker serves. use() switches:

- New connections are served as the new config says, on the new and the kept listening sockets. Connections that are
  queued in a listener that left are accepted first, as sessions of the config that they were made under; then the
  worker closes its copy of that socket.
- A session whose service, listener and backend (name, family, port) are still there moves to the new runtime,
  and what counts it moves to the new region: tcp/config_change.py, udp/config_change.py. It keeps its upstream socket,
  whatever the new slice of source ports is. All other sessions stay counted in the old region until they end, at the
  latest at the deadline of a removal in the config that they stay with. If their place comes back before, they move.
- The worker calls ``worker.released(number)`` once for each older generation, as soon as it counts nothing in that
  region any more (maybe within use()), and closes the region.

The row of this worker's slot in the new region is not empty: before ``use`` the supervisor copies the old gauges and
the numbers per client into the rows of all workers, so that limits hold while some workers have switched and others
have not. So use() first calls ``region.reset_gauges(slot)``, and then counts what moves. The numbers per client that
are rates are in the new region already; use() keeps them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..admission.source_address import SourcePorts
from ..tcp import config_change as tcp_change
from ..udp import config_change as udp_change
from . import listeners, serving

if TYPE_CHECKING:
    import socket

    from ..backends.service_runtime import ServiceRuntime
    from ..config.config import Config
    from ..config.service import Service
    from ..counters.shared_memory import Region
    from .worker import Worker

INTERVAL = 0.5  # seconds between two looks at earlier generations


class Refused(Exception):
    """A worker cannot take a config in place; the message is one sentence."""


class Change:
    """A prepared change; either use() or discard() follows, once."""

    def __init__(self, worker: Worker, number: int, config: Config, region: Region, sockets: dict) -> None:
        self._worker = worker
        self._number = number
        self._config = config
        self._region = region
        self._sockets = sockets
        before = worker.serving
        known = {**sockets, **before.listening}  # the same socket must not be polled by another descriptor
        ports = before.ports
        if (config.source_ports, config.proxy_id) != (ports.slice, ports.proxy_id):
            ports = SourcePorts(config.source_ports, proxy_id=config.proxy_id)
        try:
            self._serving = serving.Serving(
                config, region, worker.slot, known, ports, worker.tcp, worker.udp, earlier=before
            )
        except KeyError as error:
            raise Refused(f"the worker has no socket {error}") from None

    def use(self) -> None:
        """Switch the worker to the new config.

        ``worker.enter(number, config, region)`` sets what is not TCP or UDP, such as the number of the generation and
        the format in the log: what comes from ``log.kind()`` is made after it. It must not fail. If it raises all the
        same, the supervisor replaces the worker, which drains.
        """
        worker, new = self._worker, self._serving
        number, config, region, before = worker.generation, worker.config, worker.region, worker.serving
        self._region.reset_gauges(worker.slot)
        worker.enter(self._number, self._config, self._region)
        worker.serving = new
        worker.denied.follow()
        pipes = worker.tcp.pipes.bound
        worker.tcp.most_sessions, upstreams = serving.descriptors(self._config, len(new.listening), pipes)
        worker.udp.bound(new.ports, upstreams)
        replaced = [
            (runtime, new.runtimes[name])
            for name, runtime in before.runtimes.items()
            if name in new.runtimes and new.runtimes[name].service.protocol == runtime.service.protocol
        ]
        for old, heir in replaced:
            heir.follow(old)
        tcp_change.use(worker.tcp, new.acceptors, replaced)
        udp_change.use(worker.udp, new.udp_listeners, in_kernel(self._config))
        for runtime in before.runtimes.values():
            runtime.close()
        self._settle_limits()
        worker.earlier.add(number, config, region, before.runtimes.values())
        worker.tcp.set_timeouts([*self._config.services, *worker.earlier.services()])
        worker.earlier.look()

    def _settle_limits(self):
        """Let the limiters of earlier configs count only the sessions that stay with them."""
        worker, current = self._worker, set(self._serving.runtimes.values())
        staying = defaultdict(list)
        for relay in worker.tcp.sessions:
            if relay.limiter is not None and relay.runtime not in current:
                staying[relay.limiter].append(relay.client_address[0])
        for flow in worker.udp.table.flows:
            if flow.limiter is not None and flow.listener.runtime not in current:
                staying[flow.limiter].append(flow.client[0])
        for limiter, addresses in staying.items():
            limiter.keep(addresses)

    def discard(self) -> None:
        """Close the sockets and the region; the worker goes on with its config."""
        listeners.close_all(self._sockets)
        del self._serving
        self._region.close()


def prepare(worker: Worker, number: int, config: Config, region: Region, sockets: dict[str, socket.socket]) -> Change:
    """Return the change of ``worker`` to the generation ``number``; raise Refused or any other exception.

    ``region`` is the new generation's, ``sockets`` are the listening sockets that ``config`` needs and that the worker
    does not have, by name (listeners.py). They belong to the Change once it is returned; after an exception the caller
    closes them.
    """
    if worker.draining:
        raise Refused("the worker drains")
    if region.slots != worker.region.slots:
        raise Refused(f"the new config has {region.slots} workers instead of {worker.region.slots}")
    return Change(worker, number, config, region, sockets)


@dataclass
class Generation:
    """An earlier generation: its region, and its runtimes that have sessions, each with the deadline of these."""

    number: int
    region: Region
    deadlines: list[tuple[ServiceRuntime, float]]


def in_kernel(config: Config) -> set[str]:
    """Return the names of the services that the kernel forwards."""
    return {service.name for service in config.services if service.in_kernel}


class Earlier:
    """The earlier generations in whose regions a worker still counts sessions."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._generations: list[Generation] = []
        self._looks = False  # whether a timer will look()

    def add(self, number: int, config: Config, region: Region, runtimes) -> None:
        """Give the sessions that stay with these runtimes of ``config`` their deadline.

        Those of a service that the kernel forwards from now on have none, as long as it is in the config.
        """
        now, kept = self._worker.loop.now(), in_kernel(self._worker.config)

        def deadline(runtime):
            return float("inf") if runtime.service.name in kept else now + config.removal_timeout(runtime.service)

        for generation in self._generations:
            generation.deadlines = [(one, min(end, deadline(one))) for one, end in generation.deadlines]
        deadlines = [(one, deadline(one)) for one in runtimes if one.counters.open()]
        self._generations.append(Generation(number, region, deadlines))

    def services(self) -> list[Service]:
        """Return the services of earlier configs that still have sessions."""
        return [runtime.service for generation in self._generations for runtime, _deadline in generation.deadlines]

    def look(self) -> None:
        """End the sessions whose deadline has come, and release the generations that have none any more."""
        worker = self._worker
        now = worker.loop.now()
        for generation in self._generations:
            for runtime, deadline in generation.deadlines:
                if now >= deadline and runtime.counters.open():
                    self._end_sessions(runtime)
            generation.deadlines = [pair for pair in generation.deadlines if pair[0].counters.open()]
        udp_change.close_unused(worker.udp)
        self._generations = [generation for generation in self._generations if not self._release(generation)]
        if not self._looks and (self._generations or worker.udp.leaving):
            self._looks = True
            deadlines = [deadline for generation in self._generations for _runtime, deadline in generation.deadlines]
            worker.loop.timers.add(min([now + INTERVAL, *deadlines]), self._look_again)

    def _look_again(self):
        self._looks = False
        self.look()

    def _end_sessions(self, runtime):
        worker, service = self._worker, runtime.service
        if service.protocol == "udp":
            count = udp_change.end_sessions(worker.udp, runtime)
        else:
            count = tcp_change.end_sessions(worker.tcp, runtime)
        worker.loop.log.event("sessions of a removal ended", level="warning", service=service.name, sessions=count)

    def _release(self, generation):
        """Report that nothing is counted in a generation any more, and close its region; return whether that is so."""
        if generation.deadlines or not self._worker.released(generation.number):
            return False
        generation.region.close()
        return True
