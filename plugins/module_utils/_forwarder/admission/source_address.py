# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The source address and port of an upstream connection. Steps, each taken if the one before is not possible:

    the client's address and port (``source_port: keep``)
    → the client's address and a port of this proxy's slice
    → this host's own address (``source_fallback: own``), or none (``refuse``)

(client address, port, backend) must be unique among all proxies of a fleet, or two of them break each other's
connections. So each proxy may have a slice of the ports to itself (``source_ports``). Since Linux 6.3 the kernel
chooses within the slice; before, ports are tried one by one from a random start, at most TRIES per connection. Nothing
makes a client's own port unique, so a collision is a step and not an error.

A slice holds for new connections only. Old ones keep their ports, which are in the slice of another proxy after that
has joined. What then happens to a new connection with the (client address, port, backend) of an old one depends on the
strategy of the return path (measured on 6.18 with IPv4 and IPv6: tests/kernel/return_path/test_port_collisions.py,
tests/kernel/marks/test_path.py):

    mark            TCP: the backend's socket answers the SYN (a challenge ACK, RFC 5961). Conntrack has the old proxy's
                    mark, so the answer goes there, and does no harm. The new proxy hears nothing.
                    The same if conntrack has forgotten the old connection: the socket has the mark, too. (Version 0.1.0
                    sent the answer to the new proxy, whose RST ended the old connection.)
                    UDP: the replies to both sessions go to the old proxy, and there to the old session. So sockets that
                    sessions share prefer ports that are the proxy's own by its id, not only by its slice.
    fwmark_accept   TCP: as with mark, through the socket's mark.
    address         No collision: each proxy has its own address of the backend.

So no new connection breaks an old one, and a TCP connect that hears nothing is repeated from other ports
(tcp/other_ports.py).

If the client closes first, its port to the backend stays in TIME-WAIT for a minute, and the kernel does not choose it
(with net.ipv4.tcp_tw_reuse = 1 it would after a second, for the whole host). But it accepts such a port by number if
both ends use TCP timestamps (tcp_twsk_unique() in net/ipv4/tcp_ipv4.c). So a few are tried by number if it finds none.
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
PROXY_IDS = 256  # more than the greatest one
TRIES_OF_OWN = 4
TRIES_BY_NUMBER = 16  # if the kernel found none: all are used by this client, or in TIME-WAIT

# The 4-tuple, or every port of the slice, is taken: EADDRINUSE by bind, EADDRNOTAVAIL by connect.
TAKEN = {errno.EADDRINUSE, errno.EADDRNOTAVAIL}
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class SourcePorts:
    """The source ports of this proxy: a settings.PortRange, or (None) the kernel's own range.

    ``by_kernel`` says whether the kernel can choose within a slice (None: find out); ``count`` is the number of ports.
    Of the ports that give the remainder ``proxy_id`` when divided by PROXY_IDS, no other proxy prefers any, whatever
    the slices were or will be.
    """

    def __init__(self, slice_=None, by_kernel=None, proxy_id=None):
        if slice_ and by_kernel is None:
            by_kernel = sockets.chooses_within(slice_.first, slice_.last)
        self.slice, self.proxy_id = slice_, proxy_id
        self.count = slice_.last - slice_.first + 1 if slice_ else 65536
        self.by_kernel = by_kernel or not slice_
        self.option = sockets.port_range(slice_.first, slice_.last) if slice_ and by_kernel else None
        first, last = (slice_.first, slice_.last) if slice_ else sockets.local_ports()
        self._ports = range(first, last + 1)
        self._position = random.randrange(len(self._ports))  # workers and restarts begin at different ports
        self._own = range(0) if proxy_id is None else range(first + (proxy_id - first) % PROXY_IDS, last + 1, PROXY_IDS)

    def __contains__(self, port):
        """Whether a port is in the slice; without a slice every port is."""
        return not self.slice or self.slice.first <= port <= self.slice.last

    def candidates(self):
        """Yield the ports to try for a socket that many sessions share; 0 means that the kernel chooses."""
        yield from random.sample(self._own, min(TRIES_OF_OWN, len(self._own)))
        yield from (0,) if self.by_kernel else self.next_ports(TRIES)

    def other_ports(self, port):
        """Yield random ports to try by number instead of ``port``, each odd if that is even, and even if it is odd.

        Without a slice, the kernel chooses even ports until these are used up. So where another proxy that had no
        slice has an old connection, its other ones have even ports as well.
        """
        ports = self._ports
        for _try in range(TRIES_BY_NUMBER):
            number = random.randrange(len(ports) // 2) * 2
            yield ports[number + ((ports[number] ^ port ^ 1) & 1)]

    def next_ports(self, count):
        """Yield the next ``count`` ports at most, to try by number."""
        ports = self._ports
        for _try in range(min(count, len(ports))):
            self._position = (self._position + 1) % len(ports)
            yield ports[self._position]


class SourceAddress:
    """Connects for one service from the right source; ``count`` is called with the name of a counter."""

    def __init__(self, service, ports, count):
        self.keep = service.source_port == "keep"
        self.allows_own = service.source_fallback == "own"
        self._count = count
        self._ports = ports
        self._own = sockets.upstream_options(service.tcp_user_timeout)
        self._choosing = {family: sockets.transparent_options(family, ports.option) + self._own for family in _FAMILIES}
        self._keeping = {family: sockets.transparent_options(family, kept=True) + self._own for family in _FAMILIES}

    def connect(self, client, target):
        """Begin a connect to ``target`` from ``client``, both (address, port, ...).

        Return (socket, step); raise OSError.
        """
        family = socket_family_of(target[0])
        if self.keep and client[1]:  # a PROXY header may have port 0, which cannot be kept
            try:
                return sockets.begin_connect(family, self._keeping[family], client[:2], target), KEPT
            except OSError as error:
                self.after_kept(error)
        try:
            return self._connect_from_slice(family, client[0], target), ANY
        except OSError as error:
            if not self.allows_own:
                raise
            self.after_any(error)
        return self.connect_from_own(target), OWN

    def after_kept(self, error):
        """Count why the client's port cannot be kept; raise an error that another port would not help against."""
        if isinstance(error, sockets.CapabilityError) and error.errno == errno.EACCES:  # a port below 1024
            self._count("port not permitted")
        elif error.errno in TAKEN:
            self._count("port taken")
        else:
            raise error

    def after_any(self, error):
        """Count that no port of the slice is left; raise any other error again."""
        if error.errno not in TAKEN:
            raise error
        self._count("no port left")

    def connect_from_own(self, target):
        """Begin a connect from this host's own address; return the socket; raise OSError."""
        return sockets.begin_connect(socket_family_of(target[0]), self._own, None, target)

    def connect_from_other_port(self, client, target, port):
        """Begin a connect from the address ``client`` and a port of the slice that is not ``port``; return the socket.

        Raise OSError.
        """
        return self._try_ports(self._ports.other_ports(port), socket_family_of(target[0]), client, target)

    def _connect_from_slice(self, family, client, target):
        """Begin a connect from the address ``client`` and a port of the slice."""
        if not self._ports.by_kernel:
            return self._try_ports(self._ports.next_ports(TRIES), family, client, target)
        try:
            return sockets.begin_connect(family, self._choosing[family], (client, 0), target)
        except OSError as error:
            if error.errno not in TAKEN:
                raise
        return self._try_ports(self._ports.next_ports(TRIES_BY_NUMBER), family, client, target)

    def _try_ports(self, ports, family, client, target):
        taken = None
        for port in ports:
            try:
                return sockets.begin_connect(family, self._keeping[family], (client, port), target)
            except OSError as error:
                if error.errno not in TAKEN:
                    raise
                taken = error
        raise taken or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
