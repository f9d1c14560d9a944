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

import errno
import os
import socket
from dataclasses import replace

from ..loop import sockets
from ..udp import udp_sockets

MAX_DEFAULT_SLOTS = 16  # workers, if the config does not say; a host rarely needs more
SPARE_DESCRIPTORS = 256  # open files of the supervisor besides its listeners
TOO_MANY = "the limit of {} open files is reached; raise LimitNOFILE= (forwarder_nofile)"


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


def address_of(name):
    """Return the protocol, address and port in a listener's name, without the slot."""
    return name.rpartition("#")[0]


def required(config, slots, listening=()):
    """Return {name: (service, listener)} of all listening sockets that ``config`` needs.

    A service that the kernel forwards needs none. Those in ``listening`` with a slot beyond ``slots`` are needed as
    long as their address is.
    """
    surplus: dict[str, list[int]] = {}
    for name in listening:
        if slot_of(name) >= slots:
            surplus.setdefault(address_of(name), []).append(slot_of(name))
    names = {}
    for service in config.services:
        for listener in () if service.in_kernel else service.listen:
            address = address_of(name_of(service, listener, 0))
            for slot in (*range(slots), *surplus.get(address, ())):
                names[name_of(service, listener, slot)] = (service, listener)
    return names


def beyond_limit(config, slots, limit):
    """Return an error sentence if ``config`` needs more sockets than ``limit`` open files allow, else None."""
    count = slots * sum(len(service.listen) for service in config.services if not service.in_kernel)
    if count + SPARE_DESCRIPTORS <= limit:
        return None
    return (
        f"services: {count} listening sockets (one per address, port and worker) are too many for the limit of {limit}"
        " open files; raise LimitNOFILE= (forwarder_nofile), listen on fewer ports, or use fewer workers"
    )


def bind_missing(config, slots, listening, alone=False, failed=None, limit=None):
    """Return {name: socket} of the listeners that ``config`` needs and ``listening`` lacks; raise ListenError.

    Either all are bound or none. With the dictionary ``failed`` the others are bound, and what cannot be is entered
    there, {address_of(name): reason}, also what is beyond ``limit`` open files. From here on they queue connections.
    ``alone``: no other process of ours can be listening yet, so an address in use is an error. Otherwise SO_REUSEPORT
    would share it with any process of the same user, which would get part of the connections.
    """
    bound: dict[str, socket.socket] = {}
    for name, (service, listener) in required(config, slots).items():
        address = address_of(name)
        if name in listening or (failed and address in failed):
            continue
        try:
            if failed is not None and limit and len(listening) + len(bound) + SPARE_DESCRIPTORS >= limit:
                raise ListenError(errno.EMFILE, TOO_MANY.format(limit))
            bound[name] = _bind(service, listener, alone and slot_of(name) == 0)
        except OSError as error:
            reason = error.strerror if isinstance(error, ListenError) else sockets.describe(error)
            if failed is None:
                close_all(bound)
                sentence = f"service {service.name}: cannot listen on {listener}: {reason}"
                raise ListenError(error.errno, sentence) from None
            other = next((listening[one] for one in listening if address_of(one) == address), None)
            if other is not None:  # the socket of another slot, from before (as another user): share it
                bound[name] = other.dup()
                continue
            for one in [one for one in bound if address_of(one) == address]:
                bound.pop(one).close()
            failed[address] = reason
    return bound


def _bind(service, listener, alone):
    datagrams = service.protocol == "udp"
    if alone:
        sockets.refuse_taken(listener.address, listener.port, datagrams)
    if datagrams:
        return udp_sockets.listener(listener.address, listener.port)
    return sockets.listening_socket(listener.address, listener.port, service.backlog)


def without(config, failed):
    """Return ``config`` without the listeners in ``failed``, {address_of(name): reason}."""
    if not failed:
        return config
    services = (
        replace(
            service,
            listen=tuple(one for one in service.listen if address_of(name_of(service, one, 0)) not in failed),
        )
        for service in config.services
    )
    return replace(config, services=tuple(services))


def failures(config, failed):
    """Return {service name: {listener as text: reason}} of the addresses in ``failed`` that ``config`` listens on."""
    found: dict[str, dict[str, str]] = {}
    for service in config.services if failed else ():
        for listener in service.listen:
            reason = failed.get(address_of(name_of(service, listener, 0)))
            if reason is not None:
                found.setdefault(service.name, {})[str(listener)] = reason
    return found


def close_others(config, slots, listening):
    """Close the listeners that ``config`` does not need; return required() of the others."""
    names = required(config, slots, listening)
    for name in [name for name in listening if name not in names]:
        listening.pop(name).close()
    return names


def settle(config, slots, listening):
    """Close the listeners that ``config`` no longer needs, and apply its options to the others."""
    for name, (service, _listener) in close_others(config, slots, listening).items():
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
