# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one worker makes of one config: the runtime of each service, and what accepts or reads on each listening socket.

Making it has no effect on what the worker serves.
"""

from __future__ import annotations

import resource
import socket
from typing import TYPE_CHECKING

from ..admission.source_address import SourcePorts
from ..backends.service_runtime import ServiceRuntime
from ..tcp.acceptor import Acceptor
from ..udp.listener import UdpListener
from . import listeners

if TYPE_CHECKING:
    from ..config.config import Config
    from ..counters.shared_memory import Region
    from ..tcp.server import TcpServer
    from ..udp.server import UdpServer

UDP_DESCRIPTOR_FRACTION = 4  # with UDP services, 1/4 of the descriptors is reserved for their upstream sockets
RESERVED_DESCRIPTORS = 32  # besides listeners and pipes; all others are for sessions, two each


class Serving:
    """All for ``config``, which counts in the row ``slot`` of ``region``; ``listening`` has its sockets, by name.

    ``earlier`` is the Serving of the config before; what is the same in both is not made again.
    """

    def __init__(
        self,
        config: Config,
        region: Region,
        slot: int,
        listening: dict[str, socket.socket],
        ports: SourcePorts,
        tcp: TcpServer,
        udp: UdpServer,
        earlier: Serving | None = None,
    ) -> None:
        self.ports = ports
        self.runtimes: dict[str, ServiceRuntime] = {}  # by name of the service
        self.acceptors: list[Acceptor] = []
        self.udp_listeners: dict[str, UdpListener] = {}  # by name of the socket
        self.listening: dict[str, socket.socket] = {}  # the same sockets as ``listening``, without superfluous ones
        before = earlier.runtimes if earlier else {}
        for name, (service, listener) in listeners.required(config, region.slots, listening).items():
            runtime = self.runtimes.get(service.name)
            if runtime is None:
                runtime = self.runtimes[service.name] = ServiceRuntime.from_config(
                    service, region, slot, ports, tcp.loop.log, before.get(service.name), config.used_hash_table
                )
            sock = self.listening[name] = listening[name]
            place = sock, name, listeners.slot_of(name) % region.slots, runtime, listener
            if service.protocol == "udp":
                self.udp_listeners[name] = UdpListener(udp, *place)
            else:
                self.acceptors.append(Acceptor(tcp, *place))


def descriptors(config: Config, listening: int, pipes: int) -> tuple[int, int]:
    """Return (TCP sessions, upstream sockets of UDP) that find file descriptors besides listeners and pipes."""
    left = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED_DESCRIPTORS - listening - 2 * pipes
    has_udp = any(service.protocol == "udp" and not service.in_kernel for service in config.services)
    upstreams = left // UDP_DESCRIPTOR_FRACTION if has_udp else 0
    return max(1, (left - upstreams) // 2), upstreams
