# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The TCP sockets of the forwarder and every option that they have, each with its reason.

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
_TCP_INFO = struct.Struct("=68xI28xI")  # tcpi_rtt and tcpi_total_retrans of struct tcp_info, linux/tcp.h
SIOCATMARK = 0x8905  # asm-generic/sockios.h

# A peer that vanished without FIN or RST (power failure, a NAT that lost its state) must not hold a session for ever.
# After ``keepalive`` seconds without data the kernel sends a probe, then one each sixth of that time, and gives up
# after KEEPALIVE_PROBES without an answer. With the default of 60 that is after 120 s (with the kernel's own defaults
# after more than two hours), and a short outage ends no session.
KEEPALIVE_PROBES = 6

#: Errors of accept(2) that may pass: out of descriptors or memory.
OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_NON_BLOCKING_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
URGENT_INLINE = (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
_NOT_AT_MARK = bytes(4)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds

CAPABILITY_HINT = (
    "CAP_NET_RAW is missing (systemd: AmbientCapabilities=CAP_NET_RAW; shell: setpriv --ambient-caps +net_raw)"
)
LOW_PORT_HINT = "CAP_NET_BIND_SERVICE is missing (ports below 1024 need it)"


class CapabilityError(PermissionError):
    """The process may not do this; the message names the missing capability."""


def listening_socket(address, port, backlog, shared=True):
    """Return a non-blocking TCP listener; raise OSError (CapabilityError when a capability is missing).

    ``shared``: one of several on the same address, one for each worker slot (SO_REUSEPORT: all by one user id).
    Accepted connections inherit TCP_NODELAY and what tune_listener() sets, so no connection pays for these.
    """
    family = socket_family_of(address)
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # A restarted daemon can bind although old connections are in TIME-WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # "::" accepts IPv6 only, whatever bindv6only is: an IPv4 client must never appear as ::ffff:a.b.c.d.
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
    """Raise OSError if any socket has this address and port, even one that would share it (SO_REUSEPORT)."""
    family = socket_family_of(address)
    with socket.socket(family, socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM) as sock:
        if not datagrams:  # ignores TIME-WAIT; for UDP the option would also share the port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        allow_absent(sock)
        try:
            sock.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
            # the listening socket will report any other error


def allow_absent(sock):
    """Allow a socket to listen on an address that this host does not have yet (boot order, a virtual address).

    It serves as soon as the address is there. Without this, one such address would keep all services from starting.
    """
    sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)


def tune_listener(listener, keepalive, user_timeout):
    """Set keepalive and TCP_USER_TIMEOUT (both in seconds, 0: off) for the connections accepted from now on.

    Their urgent data stays in the stream (tcp/stream.py).
    """
    keep_alive(listener, keepalive)
    listener.setsockopt(*URGENT_INLINE)
    listener.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, _milliseconds(user_timeout))


def _milliseconds(seconds):
    """Return milliseconds, rounded up: a value above 0 must not become 0, which switches the timeout off."""
    return -int(-seconds * 1000 // 1)


def accept(accept_one, family):
    """Return (socket, address) of a waiting connection; raise OSError.

    ``accept_one`` is the ``_accept`` of a listening socket. Its accept() would make a Python-level socket, which costs
    more than the system call: three enum members and a larger object. SocketType is the C type below it, and is enough
    here. Its type says non-blocking, but the descriptor blocks: to set O_NONBLOCK would be one more system call per
    connection. Reads and writes use MSG_DONTWAIT instead; splice needs make_non_blocking().
    """
    number, address = accept_one()
    return socket.SocketType(family, _NON_BLOCKING_STREAM, 0, number), address


def make_non_blocking(sock):
    """Set O_NONBLOCK on a socket of accept(): splice(2) respects nothing else."""
    os.set_blocking(sock.fileno(), False)


def transparent_options(family, ports=None, kept=False):
    """Return the options (level, name, value) of a socket that binds an address that this host need not have.

    ``family`` is socket.AF_INET or AF_INET6. With ``kept`` it binds the client's port as well. Otherwise the kernel
    chooses a port at connect(), from ``ports`` (as port_range() returns it). It then knows the whole 4-tuple, and so
    several connections can share a port.
    """
    if family == socket.AF_INET6:
        options = [(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)]
    else:
        options = [(socket.IPPROTO_IP, IP_TRANSPARENT, 1)]
    # Two connections of one client may use its port to different backends; and a port in TIME-WAIT can be bound again
    # only if its last socket had this option, too.
    options.append((socket.SOL_SOCKET, socket.SO_REUSEADDR, 1))
    if not kept:
        options.append((socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1))  # governs IPv6 sockets as well
        if ports:
            options.append((socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, ports))
    return tuple(options)


def local_ports():
    """Return (first, last) of the kernel's own range of ports."""
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as stream:
            first, last = map(int, stream.read().split())
    except (OSError, ValueError):  # no /proc here
        return 32768, 60999
    return first, last


def upstream_options(user_timeout=0):
    """Return the options (level, name, value) of every connection to a backend.

    No TCP_NODELAY yet: the first bytes are sent at once anyway, and many connections have no more (tcp/stream.py). No
    TCP_SYNCNT: the relay's timeout ends an attempt earlier than any number of retransmissions, the first of which comes
    after 1 s.
    """
    # The ACK that completes the handshake waits for the client's first bytes and leaves with them.
    options = [(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0), URGENT_INLINE]
    if user_timeout:
        options.append((socket.IPPROTO_TCP, TCP_USER_TIMEOUT, _milliseconds(user_timeout)))
    return tuple(options)


def transparent_socket(family, source, kind=socket.SOCK_STREAM):
    """Return an unconnected socket bound to ``source``, an address that this host need not have; raise OSError.

    ``source`` is in text form, ``kind`` may include SOCK_NONBLOCK. A missing capability is a CapabilityError.
    """
    if is_broadcast(source):
        raise OSError(
            errno.EADDRNOTAVAIL, f"{source} is a broadcast address of this host, which would send from its own address"
        )
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
    """Whether an address (text form) is a broadcast address of this host, such as that of a subnet.

    Binding to one succeeds, but packets leave from the host's own address (inet_bind() in net/ipv4/af_inet.c). But only
    with SO_BROADCAST a datagram socket can connect to one, which sends nothing.
    """
    if ":" in address:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        target = address, 9  # any port
        if sock.connect_ex(target) != errno.EACCES:
            return False
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        return sock.connect_ex(target) != errno.EACCES  # else a route prohibits it


def begin_connect(family, options, source, target):
    """Return a TCP socket that has begun to connect to ``target``, without blocking; raise OSError.

    ``source`` and ``target`` are (address, port). For a ``source``, ``options`` have to include transparent_options();
    None is an address of this host. A missing capability is a CapabilityError.
    """
    upstream = socket.SocketType(family, _NON_BLOCKING_STREAM)
    try:
        for option in options:
            upstream.setsockopt(*option)
        if source is not None:
            upstream.bind(source)
        number = upstream.connect_ex(target)  # connect() would raise an exception for EINPROGRESS, the usual case
    except OSError as error:
        upstream.close()
        raise explained(error) from None
    if number and number != errno.EINPROGRESS:
        upstream.close()
        raise OSError(number, os.strerror(number))
    return upstream


def explained(error):
    """Return the OSError of binding a spoofed address, as a CapabilityError if a capability is missing."""
    if error.errno == errno.EPERM:
        return CapabilityError(errno.EPERM, f"EPERM: {CAPABILITY_HINT}")
    if error.errno == errno.EACCES:
        return CapabilityError(errno.EACCES, f"EACCES: {LOW_PORT_HINT}")
    return error


def at_mark(sock):
    """Whether the next byte to read from a socket with URGENT_INLINE is urgent (sockatmark(3))."""
    return fcntl.ioctl(sock, SIOCATMARK, _NOT_AT_MARK) != _NOT_AT_MARK


def send_at_once(upstream):
    """Set TCP_NODELAY, so that the server receives each piece when the client has sent it."""
    upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def port_range(first, last):
    """Return the value of IP_LOCAL_PORT_RANGE for the ports ``first`` to ``last`` (ip(7): two 16-bit halves)."""
    return struct.pack("=I", last << 16 | first)


def chooses_within(first, last):
    """Whether this kernel can choose a port from ``first`` to ``last`` by itself.

    It needs IP_LOCAL_PORT_RANGE (Linux 6.3, or a backport), and ignores a range outside net.ipv4.ip_local_port_range.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, port_range(first, last))
        except OSError:
            return False
        try:
            sock.bind(("", 0))
        except OSError:  # all ports of the range are taken, so the kernel respects it
            return True
        return first <= sock.getsockname()[1] <= last


def keep_alive(sock, idle):
    """Let the kernel probe a peer that has sent nothing for ``idle`` seconds (0: never)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1 if idle else 0)
    if idle:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, idle // KEEPALIVE_PROBES))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def acknowledge_now(upstream):
    """Send the delayed ACK of the handshake: the client has sent nothing, so the server may have to send first."""
    upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def tcp_info(sock):
    """Return (smoothed round-trip time in microseconds, segments sent again) of a connection; None on an old kernel."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    return _TCP_INFO.unpack(info) if len(info) == _TCP_INFO.size else None


def pending_error(sock):
    """Return the pending errno of a socket, such as that of a connect that has ended, and clear it; 0: none."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def reset(sock):
    """Close with RST instead of FIN: queued data is dropped, and the peer sees "connection reset"."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    finally:
        sock.close()


def describe(error):
    """Return an OSError as a short text for the log, its symbolic name first."""
    if isinstance(error, CapabilityError):
        return error.strerror
    return describe_errno(error.errno)


def describe_errno(number):
    """Return an errno as ``ECONNREFUSED: Connection refused``."""
    return f"{errno.errorcode.get(number, number)}: {os.strerror(number or 0)}"
