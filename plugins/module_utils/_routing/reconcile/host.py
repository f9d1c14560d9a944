# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Access to a host: commands, sysctls, the kernel, connection counts, the lock, the MAC cache, the states of backends.

Tests replace each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..._shared import paths
from ..datapath.table import Datapath
from ..host import backend_states, bans, files, runner
from ..host.mac_cache import Macs
from ..host.sysctl import Sysctls
from ..netlink.kernel import Kernel
from .connections import Connections
from .next_hops import Answers

# How long a proxy may take to answer ARP or ND: the kernel asks three times, one second apart (neigh/mcast_solicit).
NEIGHBOUR_WAIT = 2.0


@dataclass(frozen=True)
class Host:
    runner: runner.Runner = runner.run
    sysctls: Sysctls = field(default_factory=Sysctls)
    make_kernel: Callable[[], Any] = Kernel
    # Counts connections as ``Connections`` does.
    connections: Any = field(default_factory=Connections)
    lock: str = paths.ROUTING_LOCK
    # seconds
    neighbour_wait: float = NEIGHBOUR_WAIT
    macs: Macs = field(default_factory=Macs)
    # Who answers; None where nobody watches that, and any next hop of a route is as wanted.
    answers: Answers | None = None
    # Reads and writes the nft table of services.
    make_datapath: Callable[[Any], Any] = Datapath
    # What the forwarder's checker says of the backends of kernel services.
    backend_states: Callable[[], backend_states.States] = field(default_factory=backend_states.Reader)
    # Who is banned at kernel services, as the forwarder says.
    bans: Callable[[], bans.Bans] = field(default_factory=bans.Reader)
    # Where the keeper asks the forwarder whether it is healthy.
    admin_socket: str = paths.ADMIN_SOCKET


def locked(host: Host, unless: bool) -> contextlib.AbstractContextManager[None]:
    """Hold the host's lock; ``unless`` nothing is changed, or the caller holds it already."""
    return contextlib.nullcontext() if unless else files.locked(host.lock)
