# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every socket the forwarder makes, and every option it sets, each with its reason.

Standard library only and nothing else of this package: the handshake probe imports it as well.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from ..._shared.families import socket_family_of

# From linux/in.h and linux/in6.h; the socket module of Python 3.9 has none of them.
IP_TRANSPARENT = 19
IPV6_TRANSPARENT = 75
IP_FREEBIND = 15  # of IPv6 sockets too
IP_BIND_ADDRESS_NO_PORT = 24
IP_LOCAL_PORT_RANGE = 51  # Linux 6.3; of IPv6 sockets too
TCP_USER_TIMEOUT = 18  # milliseconds
SIOCATMARK = 0x8905  # asm-generic/sockios.h

# A peer that vanished without a word (power, a NAT that forgot) must not hold a session for ever: after ``keepalive``
# seconds without data it is asked, and it is dead after PROBES unanswered ones at a sixth of that time each. With the
# default of 60 that makes 120 s (the kernel's own numbers: more than two hours), and a short outage ends nothing.
KEEPALIVE_PROBES = 6

#: What accept(2) fails of for lack of something that may come back: descriptors or memory.
OUT_OF = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_NON_BLOCKING_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
URGENT_INLINE = (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
_NOT_AT_MARK = bytes(4)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds

CAPABILITY_HINT = (
    "CAP_NET_RAW is missing (systemd: AmbientCapabilities=CAP_NET_RAW; shell: setpriv --ambient-caps +net_raw)"
)
LOW_PORT_HINT = "CAP_NET_BIND_SERVICE is missing (ports below 1024 need it)"


class CapabilityError(PermissionError):
    """The process may not do this; the message names the capability it lacks."""


def listening_socket(address, port, backlog, shared=True):
    """Return a non-blocking TCP listener; raise OSError (CapabilityError when a capability is missing).

    ``shared``: one of several on the same address, one for each worker slot (all by one user id: the kernel insists).
    Connections accepted from it inherit TCP_NODELAY and what tune_listener() sets, so they cost nothing for each of
    them.
    """
    family = socket_family_of(address)
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # A restarted daemon binds at once although old connections are in TIME-WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # "::" takes IPv6 only, whatever bindv6only says: an IPv4 client must never appear as ::ffff:a.b.c.d.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        allow_absent(listener)
        listener.bind((address, port))
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        if error.errno == errno.EACCES and port < 1024:
            raise CapabilityError(errno.EACCES, LOW_PORT_HINT) from None
        raise
    return listener


def refuse_taken(address, port, datagrams=False):
    """Raise OSError where any socket has the address and port, one that would share it (SO_REUSEPORT) too."""
    family = socket_family_of(address)
    with socket.socket(family, socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM) as sock:
        if not datagrams:  # what is in TIME-WAIT does not listen; for UDP the option would share as well
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        allow_absent(sock)
        try:
            sock.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
            # anything else is said by the socket that is to listen


def allow_absent(sock):
    """Have a socket listen on an address that this host does not have yet (boot order, a virtual address).

    It serves as soon as the address is there. Without this one such address would keep all services from starting.
    """
    sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)


def tune_listener(listener, keepalive, user_timeout):
    """Have the connections accepted from here on kept alive and given up after these seconds (0: not at all).

    And have their urgent data stay in the stream (stream.py).
    """
    keep_alive(listener, keepalive)
    listener.setsockopt(*URGENT_INLINE)
    listener.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, _milliseconds(user_timeout))


def _milliseconds(seconds):
    """Round up: what is above 0 must not become 0, which means never."""
    return -int(-seconds * 1000 // 1)


def accept(accept_one, family):
    """Return (socket, address) of a connection that waits; raise as accept(2) does.

    ``accept_one`` is the ``_accept`` of a listening socket. Its accept() would make a Python-level socket, which costs
    more than the system call: three enum members and a larger object. SocketType is the C type below it, and does all
    that is needed here. It is told that the descriptor does not block, which is not so: that would take one more system
    call for each connection. Whoever reads or writes says MSG_DONTWAIT, and make_non_blocking() is for what cannot.
    """
    number, address = accept_one()
    return socket.SocketType(family, _NON_BLOCKING_STREAM, 0, number), address


def make_non_blocking(sock):
    """Have a socket of accept() be what it says it is: splice(2) goes by the descriptor alone."""
    os.set_blocking(sock.fileno(), False)


def transparent_options(family, ports=None, kept=False):
    """Return the options (level, name, value) of a socket that binds an address this host need not own.

    ``family`` is socket.AF_INET or AF_INET6. Unless its port is ``kept`` as well, the kernel chooses one at connect(),
    where it knows the whole 4-tuple and so is not limited to one connection a port; ``ports`` (as port_range() makes
    it) says from where.
    """
    if family == socket.AF_INET6:
        options = [(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)]
    else:
        options = [(socket.IPPROTO_IP, IP_TRANSPARENT, 1)]
    # Two connections of one client may share its port towards different backends; and in TIME-WAIT a port can be asked
    # for again only if its last socket had this, too.
    options.append((socket.SOL_SOCKET, socket.SO_REUSEADDR, 1))
    if not kept:
        options.append((socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1))  # governs IPv6 sockets as well
        if ports:
            options.append((socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, ports))
    return tuple(options)


def local_ports():
    """Return (first, last) of the ports the kernel chooses from by itself."""
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as stream:
            first, last = map(int, stream.read().split())
    except (OSError, ValueError):  # no /proc here
        return 32768, 60999
    return first, last


def upstream_options(user_timeout=0):
    """Return the options (level, name, value) of every connection to a backend.

    No TCP_NODELAY yet: the first bytes are never held back, and many a connection has no second ones (stream.py). No
    TCP_SYNCNT: the relay's own deadline ends an attempt earlier than any number of retransmissions (the first comes
    after 1 s).
    """
    # The ACK that completes the handshake waits for the client's first bytes and travels with them.
    options = [(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0), URGENT_INLINE]
    if user_timeout:
        options.append((socket.IPPROTO_TCP, TCP_USER_TIMEOUT, _milliseconds(user_timeout)))
    return tuple(options)


def transparent_socket(family, source, kind=socket.SOCK_STREAM):
    """Return an unconnected socket bound to ``source``, an address this host need not own; raise OSError.

    ``source`` is an address in text form, ``kind`` may carry SOCK_NONBLOCK. A missing capability is a CapabilityError.
    The caller connects and closes it.
    """
    if is_broadcast(source):
        raise OSError(errno.EADDRNOTAVAIL, f"{source} is a broadcast address of this host; it would send from its own")
    upstream = socket.socket(family, kind)
    try:
        for option in transparent_options(family):
            upstream.setsockopt(*option)
        upstream.bind((source, 0))
    except OSError as error:
        upstream.close()
        raise explained(error) from None
    return upstream


def is_broadcast(address):
    """Whether an address (text form) is a broadcast address of this host, as those of its subnets are.

    A bind to one succeeds, and packets then leave from the host's own address (inet_bind() in net/ipv4/af_inet.c). The
    kernel lets a datagram socket connect to one only if it has SO_BROADCAST; nothing is sent.
    """
    if ":" in address:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        target = address, 9  # any port
        if sock.connect_ex(target) != errno.EACCES:
            return False
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        return sock.connect_ex(target) != errno.EACCES  # else the route prohibits it


def begin_connect(family, options, source, target):
    """Return a TCP socket that connects to ``target`` without blocking; raise OSError.

    ``source`` and ``target`` are (address, port); ``source`` None is an address of this host, and otherwise ``options``
    hold those of transparent_options(). A missing capability is a CapabilityError.
    """
    upstream = socket.SocketType(family, _NON_BLOCKING_STREAM)
    try:
        for option in options:
            upstream.setsockopt(*option)
        if source is not None:
            upstream.bind(source)
        number = upstream.connect_ex(target)  # no exception for what is the rule
    except OSError as error:
        upstream.close()
        raise explained(error) from None
    if number and number != errno.EINPROGRESS:
        upstream.close()
        raise OSError(number, os.strerror(number))
    return upstream


def explained(error):
    """Return the OSError of binding a spoofed address, as a CapabilityError where that is what it is."""
    if error.errno == errno.EPERM:
        return CapabilityError(errno.EPERM, f"EPERM: {CAPABILITY_HINT}")
    if error.errno == errno.EACCES:
        return CapabilityError(errno.EACCES, f"EACCES: {LOW_PORT_HINT}")
    return error


def at_mark(sock):
    """Whether the next byte to be read of a socket with URGENT_INLINE is urgent (sockatmark(3))."""
    return fcntl.ioctl(sock, SIOCATMARK, _NOT_AT_MARK) != _NOT_AT_MARK


def send_at_once(upstream):
    """Set TCP_NODELAY: the server is to get what its client has sent when the client sent it."""
    upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def port_range(first, last):
    """Return the value of IP_LOCAL_PORT_RANGE for the ports ``first`` to ``last`` (ip(7): two 16-bit halves)."""
    return struct.pack("=I", last << 16 | first)


def chooses_within(first, last):
    """Whether this kernel chooses a port within ``first`` to ``last`` when it is told to.

    It has to have IP_LOCAL_PORT_RANGE (Linux 6.3 or a distribution that took it over), and it ignores a range that lies
    outside of net.ipv4.ip_local_port_range.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, port_range(first, last))
        except OSError:
            return False
        try:
            sock.bind(("", 0))
        except OSError:  # all of them are taken, so it looked at nothing else
            return True
        return first <= sock.getsockname()[1] <= last


def keep_alive(sock, idle):
    """Have the kernel ask a peer that says nothing for ``idle`` seconds whether it is still there (0: never)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1 if idle else 0)
    if idle:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, idle // KEEPALIVE_PROBES))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def acknowledge_now(upstream):
    """Send the held ACK of begin_connect(): the client has nothing to say, so the server may be the one to begin."""
    upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def connect_error(upstream):
    """Return the errno of a finished connect, 0 for success."""
    return pending_error(upstream)


def pending_error(sock):
    """Return the errno a socket has to report, 0 for none; it is reported once."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


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
