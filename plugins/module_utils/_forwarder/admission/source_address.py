# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an upstream connection has as its source, step by step down the ladder.

    the client's address and port (``source_port: keep``)
    → the client's address and a port of this proxy's slice
    → this host's own address (``source_fallback: own``), or nothing (``refuse``)

(client, port, backend) must be unique among all proxies of a fleet, or two of them break each other's connections; so
each may have a slice of the ports for itself (``source_ports``). Since Linux 6.3 the kernel chooses within it; before,
ports are tried one after the other from a random start, at most TRIES for a connection. A kept port cannot be unique by
construction, which is why a collision is a step of the ladder and not an error.

Where the client closes first, its port to the backend stays in TIME-WAIT for a minute, and the kernel does not choose
such a port (with net.ipv4.tcp_tw_reuse = 1 it would, a second later, and for the whole host). It does give one that is
asked for by number, if both sides use TCP timestamps (tcp_twsk_unique() in net/ipv4/tcp_ipv4.c). So a few are asked for
where it finds none.
"""

from __future__ import annotations

import errno
import os
import random
import socket

from ..._shared.families import socket_family_of
from ..loop import sockets

KEPT, ANY, OWN = "kept", "any", "own"  # the steps, as the log and the counters name them
TRIES = 64
TRIES_AGAIN = 16  # where the kernel found none: all are in use by this client, or in TIME-WAIT

# The 4-tuple, or every port of the slice, is taken: EADDRINUSE by bind, EADDRNOTAVAIL by connect.
TAKEN = {errno.EADDRINUSE, errno.EADDRNOTAVAIL}
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class Ports:
    """The source ports of this proxy: ``first`` to ``last``, or None for the kernel's own range.

    ``by_kernel`` says whether it chooses within a slice (None: ask it); ``count`` is how many there are.
    """

    def __init__(self, slice_=None, by_kernel=None):
        if slice_ and by_kernel is None:
            by_kernel = sockets.chooses_within(slice_.first, slice_.last)
        self.count = slice_.last - slice_.first + 1 if slice_ else 65536
        self.by_kernel = by_kernel or not slice_
        self.option = sockets.port_range(slice_.first, slice_.last) if slice_ and by_kernel else None
        first, last = (slice_.first, slice_.last) if slice_ else sockets.local_ports()
        self._ports = range(first, last + 1)
        self._position = random.randrange(len(self._ports))  # workers and restarts begin elsewhere

    def candidates(self):
        """Return an iterable of the ports to try; 0 means that the kernel chooses."""
        return (0,) if self.by_kernel else self.next_ones(TRIES)

    def next_ones(self, tries):
        """Yield the ports to ask for by number, so many at most."""
        ports = self._ports
        for _try in range(min(tries, len(ports))):
            self._position = (self._position + 1) % len(ports)
            yield ports[self._position]


class Source:
    """How connections of a service get their source; ``count`` takes the names of counters."""

    def __init__(self, service, ports, count):
        self.keep = service.source_port == "keep"
        self.may_be_own = service.source_fallback == "own"
        self._count = count
        self._ports = ports
        self._own = sockets.upstream_options(service.tcp_user_timeout)
        self._choosing = {one: sockets.transparent_options(one, ports.option) + self._own for one in _FAMILIES}
        self._keeping = {one: sockets.transparent_options(one, kept=True) + self._own for one in _FAMILIES}

    def connect(self, client, target):
        """Begin a connect to ``target`` as ``client``, both (address, port, ...).

        Return (socket, step); raise OSError.
        """
        family = socket_family_of(target[0])
        if self.keep and client[1]:  # a PROXY header may name no port: then there is none to keep
            try:
                return sockets.begin_connect(family, self._keeping[family], client[:2], target), KEPT
            except OSError as error:
                self.after_kept(error)
        try:
            return self._choose(family, client[0], target), ANY
        except OSError as error:
            if not self.may_be_own:
                raise
            self.after_any(error)
        return self.connect_as_own(target), OWN

    def after_kept(self, error):
        """Count why the client's port cannot be kept; reraise an error for which another port is no remedy."""
        if isinstance(error, sockets.CapabilityError) and error.errno == errno.EACCES:  # a port below 1024
            self._count("port not permitted")
        elif error.errno in TAKEN:
            self._count("port taken")
        else:
            raise error

    def after_any(self, error):
        """Count that no port of the slice is left; reraise an error that says anything else."""
        if error.errno not in TAKEN:
            raise error
        self._count("no port left")

    def connect_as_own(self, target):
        """Begin a connect from this host's own address; return the socket; raise OSError."""
        return sockets.begin_connect(socket_family_of(target[0]), self._own, None, target)

    def _choose(self, family, client, target):
        """Begin a connect as ``client`` from a port of the slice."""
        if not self._ports.by_kernel:
            return self._ask_for(self._ports.next_ones(TRIES), family, client, target)
        try:
            return sockets.begin_connect(family, self._choosing[family], (client, 0), target)
        except OSError as error:
            if error.errno not in TAKEN:
                raise
        return self._ask_for(self._ports.next_ones(TRIES_AGAIN), family, client, target)

    def _ask_for(self, ports, family, client, target):
        taken = None
        for candidate in ports:
            try:
                return sockets.begin_connect(family, self._keeping[family], (client, candidate), target)
            except OSError as error:
                if error.errno not in TAKEN:
                    raise
                taken = error
        raise taken or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
