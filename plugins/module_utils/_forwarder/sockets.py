# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every socket the forwarder makes, and every option it sets, each with its reason.

Standard library only and nothing else of this package: the handshake probe imports it as well.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

# From linux/in.h and linux/in6.h; the socket module of Python 3.9 has none of them.
IP_TRANSPARENT = 19
IPV6_TRANSPARENT = 75
IP_BIND_ADDRESS_NO_PORT = 24

# A peer that vanished without a word (power, a NAT that forgot) must not hold a session for ever. With these an idle
# connection to one ends after 60 + 6 * 10 = 120 s; the kernel's own numbers make it more than two hours. A minute is
# shorter than what firewalls and NATs on the way commonly allow an idle connection, so the probes keep it known there.
KEEPALIVE_IDLE = 60  # seconds without data until the first probe
KEEPALIVE_INTERVAL = 10  # seconds between probes
KEEPALIVE_PROBES = 6  # unanswered ones until the connection is dead: a short outage of the network ends none

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds

CAPABILITY_HINT = (
    "CAP_NET_RAW is missing (systemd: AmbientCapabilities=CAP_NET_RAW; shell: setpriv --ambient-caps +net_raw)"
)
LOW_PORT_HINT = "CAP_NET_BIND_SERVICE is missing (ports below 1024 need it)"


class CapabilityError(PermissionError):
    """The process may not do this; the message names the capability it lacks."""


def family_of(address):
    """Return the socket family of an address in text form."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def listening_socket(address, port, backlog):
    """Return a non-blocking TCP listener; raise OSError (CapabilityError when a capability is missing).

    Connections accepted from it inherit TCP_NODELAY and keepalive, so they cost nothing for each of them.
    """
    family = family_of(address)
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # A restarted daemon binds at once although old connections are in TIME-WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # One socket for each worker slot on the same address (all by one user id: the kernel insists).
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # "::" takes IPv6 only, whatever bindv6only says: an IPv4 client must never appear as ::ffff:a.b.c.d.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _keep_alive(listener)
        listener.bind((address, port))
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        if error.errno == errno.EACCES and port < 1024:
            raise CapabilityError(errno.EACCES, LOW_PORT_HINT) from None
        raise
    return listener


def transparent_socket(family, source, source_port=0, kind=socket.SOCK_STREAM, blocking=True):
    """Return an unconnected socket bound to ``source``, an address this host need not own; raise OSError.

    ``family`` is socket.AF_INET or AF_INET6, ``source`` an address in text form. A ``source_port`` of 0 lets the kernel
    choose at connect(), where it knows the whole 4-tuple and so is not limited to one connection a port. EPERM
    becomes a CapabilityError. The caller connects and closes it.
    """
    upstream = socket.socket(family, kind if blocking else kind | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            upstream.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        else:
            upstream.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
        # Two connections of one client may share its port towards different backends.
        upstream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not source_port:
            upstream.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)  # governs IPv6 sockets as well
        upstream.bind((source, source_port))
    except OSError as error:
        upstream.close()
        if error.errno == errno.EPERM:
            raise CapabilityError(errno.EPERM, f"EPERM: {CAPABILITY_HINT}") from None
        if error.errno == errno.EACCES:
            raise CapabilityError(errno.EACCES, f"EACCES: {LOW_PORT_HINT}") from None
        raise
    return upstream


def connect_upstream(source, address, port):
    """Begin a connect to a backend with ``source`` as our address; return the non-blocking socket; raise OSError.

    The connect is under way when this returns. No TCP_SYNCNT: the relay's own deadline ends an attempt earlier than any
    number of retransmissions (the first comes after 1 s).
    """
    upstream = transparent_socket(family_of(address), source, blocking=False)
    try:
        upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _keep_alive(upstream)
        # The ACK that completes the handshake waits for the client's first bytes and travels with them.
        upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        upstream.connect((address, port))
    except BlockingIOError:
        return upstream  # EINPROGRESS
    except OSError:
        upstream.close()
        raise
    return upstream


def _keep_alive(sock):
    """Have the kernel ask an idle peer whether it is still there."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def acknowledge_now(upstream):
    """Send the held ACK of connect_upstream(): the client has nothing to say, so the server may be the one to begin."""
    upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def connect_error(upstream):
    """Return the errno of a finished connect, 0 for success."""
    return upstream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def reset(sock):
    """Close with RST instead of FIN: what is queued is dropped and the peer sees "connection reset"."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    finally:
        sock.close()


def describe(error):
    """Return an OSError as the short text a log line carries, its symbolic name first."""
    if isinstance(error, CapabilityError):
        return error.strerror
    return describe_errno(error.errno)


def describe_errno(number):
    """Return an errno as ``ECONNREFUSED: Connection refused``."""
    return f"{errno.errorcode.get(number, number)}: {os.strerror(number or 0)}"
