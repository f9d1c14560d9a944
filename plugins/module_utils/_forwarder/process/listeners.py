# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The listening sockets: one for each listen address and worker slot, made and held by the supervisor.

They outlive workers, generations and the supervisor's own re-exec, so no reload refuses a connection: what arrives
while nobody accepts waits in the backlog. A listener is known by its name.

A socket that leaves its reuseport group resets what is queued in it. So when a reload asks for fewer workers, the
sockets of the slots beyond stay and are served by the workers that are left: slot n by worker n modulo their number.
Sockets that join lose nothing, for a handshake under way is found by its 4-tuple and not by its group; of UDP they move
part of the clients to another worker, where their sessions begin anew.
"""

from __future__ import annotations

import os
import socket

from ..loop import sockets
from ..udp import udp_sockets

MOST_DEFAULT_SLOTS = 16  # workers when none are asked for; beyond it one core is rarely the bound


SPARE_DESCRIPTORS = 256  # open files of the supervisor beside its listeners


class ListenError(OSError):
    """An address cannot be listened on; the message names the service, the address and the reason."""


def name_of(service, listener, slot):
    """Return the name of a listening socket, the same in every generation."""
    return f"{service.protocol}:{listener}#{slot}"


def slots_of(config):
    """Return the number of worker slots ``config`` asks for; by default one for each core we may use."""
    return config.workers or min(len(os.sched_getaffinity(0)), MOST_DEFAULT_SLOTS)


def slot_of(name):
    """Return the slot in a listener's name."""
    return int(name.rpartition("#")[2])


def wanted(config, slots, held=()):
    """Return {name: (service, listener)} of all listening sockets ``config`` asks for.

    Those among ``held`` that are of a slot beyond ``slots`` are wanted as long as their address is.
    """
    extra: dict[str, list[int]] = {}
    for name in held:
        if slot_of(name) >= slots:
            extra.setdefault(name.rpartition("#")[0], []).append(slot_of(name))
    found = {}
    for service in config.services:
        for listener in service.listen:
            address = name_of(service, listener, 0).rpartition("#")[0]
            for slot in (*range(slots), *extra.get(address, ())):
                found[name_of(service, listener, slot)] = (service, listener)
    return found


def beyond_limit(config, slots, limit):
    """Return a sentence where ``config`` needs more sockets than ``limit`` open files allow, else None."""
    count = slots * sum(len(service.listen) for service in config.services)
    if count + SPARE_DESCRIPTORS <= limit:
        return None
    return (
        f"services: {count} listening sockets (one for each address, port and worker) are too many for {limit} open"
        " files; raise LimitNOFILE= (forwarder_nofile), name fewer ports, or use fewer workers"
    )


def bind_missing(config, slots, held, alone=False):
    """Return {name: socket} of the listeners ``config`` wants beyond ``held`` (names); raise ListenError.

    Either all are bound or none. They are listening, and queue connections from here on. ``alone``: no process of ours
    can listen there yet. SO_REUSEPORT would share an address with any other process of this user, which would get a
    part of the connections.
    """
    bound = {}
    for name, (service, listener) in wanted(config, slots).items():
        if name in held:
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


def settle(config, slots, held):
    """Make ``held`` exactly what ``config`` wants: close what it no longer names, renew what can be changed."""
    names = wanted(config, slots, held)
    for name in [name for name in held if name not in names]:
        held.pop(name).close()
    for name, (service, _listener) in names.items():
        if service.protocol == "udp":
            continue
        held[name].listen(service.backlog)  # on a listening socket this only changes the backlog
        sockets.tune_listener(held[name], service.keepalive, service.tcp_user_timeout)


def close_all(held):
    """Close and forget every socket in ``held``."""
    while held:
        held.popitem()[1].close()


def adopt(numbers):
    """Return {name: socket} from {name: file descriptor} inherited over exec; they become close-on-exec again."""
    held = {}
    for name, number in numbers.items():
        sock = socket.socket(fileno=number)
        sock.set_inheritable(False)
        sock.setblocking(False)
        held[name] = sock
    return held
