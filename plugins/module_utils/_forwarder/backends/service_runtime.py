# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A service at run time: its backends, its limits and its source addresses, as one worker uses them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..._shared.families import FAMILIES, family_of
from ..admission import never_spoofed
from ..admission.acl import CLOSED, AccessList, Closed, Networks
from ..admission.deny_table import Denied
from ..admission.limits import Limiter
from ..admission.refusal import Refusal
from ..admission.source_address import SourceAddress, SourcePorts
from ..config.defaults import HASH_TABLES
from ..config.service import Limits, Listener, Service
from ..counters.service_counters import ServiceCounters
from ..counters.shared_memory import Region
from ..loop import sockets
from ..loop.log import Log
from .balancer import SKIPPED, SKIPPED_ALONE, Backends

MOST_REMEMBERED = 8192  # client addresses of which a service remembers what backends_for() has returned


@dataclass(eq=False)
class ServiceRuntime:
    """One service in one worker. All its listeners and sessions, of TCP or UDP, share this object.

    They read it whenever they need a backend, a limit or a timeout. A config that is taken in place makes another one,
    which follow()s this one: sessions whose backend is still there move to it (process/config_change.py), and this one
    is closed() to new clients. The Backends and the Limiter of a session are always those of its runtime.
    """

    service: Service  # the config: timeouts, retries, what to log
    backends: dict[str, Backends]  # by family; only families that have backends
    counters: ServiceCounters  # written by this worker
    source: SourceAddress  # how an upstream connection gets its source address and port
    log: Log
    trusted_proxies: Networks | None = None  # clients that have to send a PROXY header; None: no client has to
    access: AccessList | Closed | None = None  # allow and deny; None: every client may connect
    denied: Denied | None = None  # bans; None: there are none
    limiter: Limiter | None = None  # connection and rate limits; None: there are none
    guarded: bool = field(init=False)  # whether any of these four applies: the one check for a client where none does
    acceptors: list = field(default_factory=list)  # tcp.acceptor.Acceptor: its TCP listeners in this worker
    paused: bool = False  # whether its acceptors wait until a session ends (limits.at_limit: pause)

    def __post_init__(self) -> None:
        self.ban(self.denied)
        self._has_ranges = any(backend.last_port for backend in self.service.backends)
        self._targets: dict = {}  # offset of a listener in its range of ports -> what targets() returned
        self._remembered: dict = {}  # client address -> what backends_for() returned
        self._remembered_for: frozenset | None = None  # the own addresses with which it was found out

    def ban(self, denied: Denied | None) -> None:
        """Refuse the clients in ``denied`` from now on."""
        self.denied = denied
        others = (self.trusted_proxies, self.access, self.limiter)
        self.guarded = denied is not None or any(one is not None for one in others)

    @classmethod
    def from_config(
        cls,
        service: Service,
        region: Region,
        slot: int,
        ports: SourcePorts,
        log: Log,
        earlier: ServiceRuntime | None = None,
        hash_table: str = HASH_TABLES[0],
    ) -> ServiceRuntime:
        """Return the runtime of ``service`` in worker slot ``slot``, which counts in ``region``.

        ``earlier`` is that of an earlier config, whose lists of networks are used again where they are the same.
        ``hash_table`` is that of the config.
        """
        counters = ServiceCounters(region, slot, service.name)
        families = [family for family in FAMILIES if service.backends_of(family)]
        if earlier and _networks(earlier.service) == _networks(service):
            trusted_proxies, access = earlier.trusted_proxies, earlier.access
        else:
            trusted_proxies = Networks(service.accept_proxy) if service.accept_proxy else None
            access = AccessList(service.allow, service.deny) if service.allow or service.deny else None
        return cls(
            service,
            backends={family: Backends(service, family, region, slot, hash_table) for family in families},
            counters=counters,
            source=SourceAddress(service, ports, counters.count),
            log=log,
            trusted_proxies=trusted_proxies,
            access=access,
            limiter=Limiter(service.limits, counters.total, counters.client_numbers)
            if service.limits != Limits()
            else None,
        )

    def admit(self, address: str, now: float) -> Refusal | None:
        """Return the Refusal of a client, or count it and return None; limiter.release() has to follow at its end."""
        refusal = self.denied.refusal(address) if self.denied is not None else None
        if refusal is None and self.access:
            refusal = self.access.refusal(address)
        if refusal is None and self.limiter is not None:
            refusal = self.limiter.admit(address, now)
        return refusal

    def backends_for(
        self, address: str, own_addresses: frozenset[str], from_proxy: bool = False
    ) -> tuple[Backends, Refusal | None, tuple[int, ...]]:
        """Return (Backends of the client's family, why its address cannot be the source, indexes of its own backends).

        The second is None for a client that can be spoofed. The third are the backends that have the client's address:
        they are chosen last. ``from_proxy``: a PROXY header has named the address.
        """
        if own_addresses is not self._remembered_for or len(self._remembered) >= MOST_REMEMBERED:
            self._remembered, self._remembered_for = {}, own_addresses
        answer = self._remembered.get(address)
        if answer is None:
            answer = self._remembered[address] = self._find_backends(address, own_addresses, from_proxy)
        return answer

    def _find_backends(self, address, own_addresses, from_proxy):
        refusal = never_spoofed.refusal(address, own_addresses)
        if refusal is None and from_proxy and sockets.is_broadcast(address):
            refusal = never_spoofed.BROADCAST  # the kernel accepts no packet of a direct client with such a source
        backends = self.backends.get(family_of(address))
        if backends is None:
            return next(iter(self.backends.values())), refusal or never_spoofed.FOREIGN_FAMILY, ()
        return backends, refusal, () if refusal else backends.with_address(address)

    def targets(self, listener: Listener) -> dict[str, tuple[tuple[str, int], ...]]:
        """Return {family: ((address, port) of each backend, by index)} for clients of ``listener``."""
        offset = listener.offset if self._has_ranges else None  # without ranges it is the same for all listeners
        if offset not in self._targets:
            self._targets[offset] = {
                family: tuple((backend.address(family), backend.port_of(listener)) for backend in backends.backends)
                for family, backends in self.backends.items()
            }
        return self._targets[offset]

    def last_resort(
        self, backends: Backends, own_backends: tuple[int, ...], address: str, tried: tuple[int, ...], now: float
    ) -> tuple[int | None, Refusal | None]:
        """Return (index, why the client is hidden) of a backend that has the client's address, when no other is left.

        ``own_backends`` are the indexes of those, ``tried`` all indexes that were passed over or given before. Without
        such a backend return (None, Refusal), or (None, None) where an attempt has failed, which says more.
        """
        index = None
        if own_backends:
            index = backends.next(address, tuple(one for one in tried if one not in own_backends), now)
        if index is None:
            return None, backends.refusal() if tried == own_backends else None
        if not self.source.allows_own:
            backends.release(index)
            self.counters.count("refused")
            index = None
        return index, never_spoofed.BACKENDS_OWN

    def failed(self, backends, index, client, number, reason, now, to_blame=True, is_served=None) -> None:
        """Count a connect that failed with errno ``number``; log ``reason`` if the backend is skipped from now on.

        ``to_blame`` and ``is_served`` as for Backends.failed().
        """
        event = backends.failed(client, index, number, now, to_blame, is_served)
        if event == SKIPPED_ALONE and self.service.log != "none":
            self.log_health(event, backends, index, level="warning", client=client, reason=reason)
        elif event == SKIPPED:
            self.log_health(event, backends, index, level="warning", reason=reason)

    def log_health(self, event: str, backends: Backends, index: int, **fields: Any) -> None:
        """Log what clients have found out about a backend."""
        backend = backends.backends[index]
        self.log.event(event, service=self.service.name, backend=backend.name, family=backends.family, **fields)

    def follow(self, other: ServiceRuntime) -> None:
        """Take the place of ``other``, of an earlier config."""
        for family, backends in self.backends.items():
            if family in other.backends:
                backends.follow(other.backends[family])

    def close(self) -> None:
        """Another runtime has replaced this one, or the service was removed: begin no UDP session any more.

        A TCP connection that was accepted before is still served.
        """
        self.paused, self.acceptors = False, []
        if self.service.protocol == "udp":
            self.access, self.guarded = CLOSED, True

    def pause(self, on: bool) -> None:
        """Stop or start accepting TCP connections for this service."""
        self.paused = on
        for acceptor in self.acceptors:
            acceptor.update()


def _networks(service: Service) -> tuple[Any, Any, Any]:
    return service.accept_proxy, service.allow, service.deny
