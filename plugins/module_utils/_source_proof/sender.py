# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sends samples from a source address that this host does not own."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from collections.abc import Sequence

from .._forwarder.loop.sockets import IPV6_TRANSPARENT
from .sample import PROTOCOLS, RST, Sample, datagram, segment

# Seconds between two packets of a sample. It is repeated, because the backend starts to observe some time later.
INTERVAL = 0.5


def send_in_background(samples: Sequence[Sample], seconds: float, uid: int = 0) -> None:
    """Send from a process of its own, so that the caller can ask the backends. OSError if a raw socket is refused.

    ``uid`` is the forwarder's user id: rules that match a socket's owner then treat the samples as its packets.
    """
    for sample in samples:
        _raw_socket(sample).close()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            os.closerange(3, 1024)
            # The owner of new sockets. Unlike the effective user id it does not affect CAP_NET_RAW (capabilities(7)).
            ctypes.CDLL(None).setfsuid(uid)
            send(samples, seconds)
    finally:
        os._exit(0)


def send(samples: Sequence[Sample], seconds: float) -> None:
    """Send every sample repeatedly for that long; then reset the half-open TCP connections on the backends."""
    senders = [(sample, _raw_socket(sample)) for sample in samples]
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            for sample, sender in senders:
                _send(sender, sample, segment(sample) if sample.protocol == "tcp" else datagram(sample))
            time.sleep(INTERVAL)
        for sample, sender in senders:
            if sample.protocol == "tcp":
                _send(sender, sample, segment(sample, RST, (sample.token + 1) % (1 << 32)))
    finally:
        for _sample, sender in senders:
            sender.close()


def _raw_socket(sample: Sample) -> socket.socket:
    """A socket that sends from the sample's source. PermissionError without CAP_NET_RAW."""
    if not sample.is_ipv6:
        sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
        return sender
    sender = socket.socket(socket.AF_INET6, socket.SOCK_RAW, PROTOCOLS[sample.protocol])
    sender.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    sender.bind((sample.source, 0))
    return sender


def _send(sender: socket.socket, sample: Sample, payload: bytes) -> None:
    try:
        sender.sendto(_packet(sample, payload), (sample.address, 0))
    except OSError:
        pass  # no route at the moment, or a filter: the backend reports that it saw nothing


def _packet(sample: Sample, payload: bytes) -> bytes:
    if sample.is_ipv6:
        return payload  # the kernel writes the header
    source, address = (socket.inet_aton(text) for text in (sample.source, sample.address))
    # The kernel fills in length, identification and checksum (raw(7)).
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, PROTOCOLS[sample.protocol], 0, source, address) + payload
