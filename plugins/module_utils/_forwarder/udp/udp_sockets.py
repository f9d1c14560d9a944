# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sockets of UDP and every option that they have, each with its reason; those of TCP are in loop/sockets.py."""

from __future__ import annotations

import errno
import socket

from ..._shared.families import socket_family_of
from ..loop import sockets
from . import ancillary

# Bytes of a datagram socket's receive queue; the kernel caps it at net.core.rmem_max. It is shared by many clients, and
# has to hold what arrives while the worker does something else.
DATAGRAM_BUFFER = 4 << 20


def listener(address, port):
    """Return a non-blocking UDP socket for clients, one of several on the same address; raise OSError
    (CapabilityError when a capability is missing).

    On a wildcard address each datagram comes with the address that it was sent to.
    """
    family = socket_family_of(address)
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DATAGRAM_BUFFER)
        if address in ("0.0.0.0", "::"):
            sock.setsockopt(*ancillary.REPORT_DESTINATION[family], 1)
        sockets.allow_absent(sock)
        sock.bind((address, port))
    except OSError as error:
        sock.close()
        if error.errno == errno.EACCES and port < 1024:
            raise sockets.CapabilityError(errno.EACCES, sockets.LOW_PORT_HINT) from None
        raise
    return sock


def upstream(family, address="", port=0, ports=None, spoofing=True):
    """Return an unconnected UDP socket for datagrams to backends; raise OSError.

    A ``spoofing`` one on the wildcard address may send from any address (ancillary.leaving_from). Replies come with the
    address that they are for, ICMP errors go to its error queue. No other socket can bind its port: no SO_REUSEADDR.
    ``ports`` (as sockets.port_range() makes it) is where the kernel chooses the port.
    """
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if spoofing and family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, sockets.IPV6_TRANSPARENT, 1)
        elif spoofing:
            sock.setsockopt(socket.IPPROTO_IP, sockets.IP_TRANSPARENT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if ports and not port:
            sock.setsockopt(socket.IPPROTO_IP, sockets.IP_LOCAL_PORT_RANGE, ports)
        sock.setsockopt(*ancillary.REPORT_DESTINATION[family], 1)
        sock.setsockopt(*ancillary.REPORT_ERRORS[family], 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DATAGRAM_BUFFER)
        sock.bind((address, port))
    except OSError as error:
        sock.close()
        if error.errno == errno.EPERM:
            raise sockets.CapabilityError(errno.EPERM, f"EPERM: {sockets.CAPABILITY_HINT}") from None
        if error.errno == errno.EACCES:
            raise sockets.CapabilityError(errno.EACCES, f"EACCES: {sockets.LOW_PORT_HINT}") from None
        raise
    return sock
