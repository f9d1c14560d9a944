# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The listening sockets of services: one per listen address and worker slot, opened and kept by the supervisor.

They outlive workers, generations and the supervisor's own exec, so a reload refuses no connection: until a worker
accepts, connections wait in the backlog. A listener is identified by its name, name_of().

Closing a socket of a reuseport group resets the connections in its backlog. So when a reload asks for fewer workers,
the sockets of the surplus slots stay open; slot n is served by worker n modulo the number of workers. Adding a TCP
socket to a group is harmless: the kernel finds a handshake in progress by its 4-tuple. Adding a UDP socket moves some
clients to another worker, where they get new sessions.
"""

from __future__ import annotations

import os
import socket

from ..loop import sockets
from ..udp import udp_sockets

MAX_DEFAULT_SLOTS = 16  # workers, if the config does not say; a host rarely needs more
SPARE_DESCRIPTORS = 256  # open files of the supervisor besides its listeners


class ListenError(OSError):
    """A listener cannot be bound; the message names the service, the address and the reason."""


def name_of(service, listener, slot):
    """Return the name of a listening socket; it is the same in every generation and version."""
    return f"{service.protocol}:{listener}#{slot}"


def slots_of(config):
    """Return the number of worker slots of ``config``; by default one per CPU that this process may use."""
    return config.workers or min(len(os.sched_getaffinity(0)), MAX_DEFAULT_SLOTS)


def slot_of(name):
    """Return the slot in a listener's name."""
    return int(name.rpartition("#")[2])


def required(config, slots, listening=()):
    """Return {name: (service, listener)} of all listening sockets that ``config`` needs.

    Those in ``listening`` with a slot beyond ``slots`` are needed as long as their address is.
    """
    surplus: dict[str, list[int]] = {}
    for name in listening:
        if slot_of(name) >= slots:
            surplus.setdefault(name.rpartition("#")[0], []).append(slot_of(name))
    names = {}
    for service in config.services:
        for listener in service.listen:
            address = name_of(service, listener, 0).rpartition("#")[0]
            for slot in (*range(slots), *surplus.get(address, ())):
                names[name_of(service, listener, slot)] = (service, listener)
    return names


def beyond_limit(config, slots, limit):
    """Return an error sentence if ``config`` needs more sockets than ``limit`` open files allow, else None."""
    count = slots * sum(len(service.listen) for service in config.services)
    if count + SPARE_DESCRIPTORS <= limit:
        return None
    return (
        f"services: {count} listening sockets (one per address, port and worker) are too many for the limit of {limit}"
        " open files; raise LimitNOFILE= (forwarder_nofile), listen on fewer ports, or use fewer workers"
    )


def bind_missing(config, slots, listening, alone=False):
    """Return {name: socket} of the listeners that ``config`` needs and ``listening`` lacks; raise ListenError.

    Either all are bound or none. From here on they queue connections. ``alone``: no other process of ours can be
    listening yet, so an address in use is an error. Otherwise SO_REUSEPORT would share it with any process of the same
    user, which would get part of the connections.
    """
    bound = {}
    for name, (service, listener) in required(config, slots).items():
        if name in listening:
            continue
        try:
            if alone and slot_of(name) == 0:
                sockets.refuse_taken(listener.address, listener.port, service.protocol == "udp")
            if service.protocol == "udp":
                bound[name] = udp_sockets.listener(listener.address, listener.port)
            else:
                bound[name] = sockets.listening_socket(listener.address, listener.port, service.backlog)
        except OSError as error:
            close_all(bound)
            raise ListenError(
                error.errno, f"service {service.name}: cannot listen on {listener}: {sockets.describe(error)}"
            ) from None
    return bound


def settle(config, slots, listening):
    """Close the listeners that ``config`` no longer needs, and apply its options to the others."""
    names = required(config, slots, listening)
    for name in [name for name in listening if name not in names]:
        listening.pop(name).close()
    for name, (service, _listener) in names.items():
        if service.protocol == "udp":
            continue
        listening[name].listen(service.backlog)  # on a listening socket this only changes the backlog
        sockets.tune_listener(listening[name], service.keepalive, service.tcp_user_timeout)


def close_all(listening):
    """Close all sockets and empty the dictionary."""
    while listening:
        listening.popitem()[1].close()


def adopt(numbers):
    """Return {name: socket} of {name: file descriptor} inherited over exec, close-on-exec again."""
    listening = {}
    for name, number in numbers.items():
        sock = socket.socket(fileno=number)
        sock.set_inheritable(False)
        sock.setblocking(False)
        listening[name] = sock
    return listening
