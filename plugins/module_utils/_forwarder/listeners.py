# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The listening sockets: one SO_REUSEPORT socket for each listen address and worker slot, held by the supervisor.

They outlive workers, generations and the supervisor's own re-exec, so no reload refuses a connection: what arrives
while nobody accepts waits in the backlog. A listener is known by its name.
"""

from __future__ import annotations

import socket

from . import sockets

SLOTS = 1  # worker slots of this version


class ListenError(OSError):
    """An address cannot be listened on; the message names the service, the address and the reason."""


def name_of(service, listener, slot):
    """Return the name of a listening socket, the same in every generation."""
    return f"{service.protocol}:{listener}#{slot}"


def wanted(config):
    """Return {name: (service, listener)} of all listening sockets ``config`` asks for."""
    return {
        name_of(service, listener, slot): (service, listener)
        for service in config.services
        for listener in service.listen
        for slot in range(SLOTS)
    }


def bind_missing(config, held):
    """Return {name: socket} of the listeners ``config`` wants beyond ``held`` (names); raise ListenError.

    Either all are bound or none. They are listening, and queue connections from here on.
    """
    bound = {}
    for name, (service, listener) in wanted(config).items():
        if name in held:
            continue
        try:
            bound[name] = sockets.listening_socket(listener.address, listener.port, service.backlog)
        except OSError as error:
            close_all(bound)
            raise ListenError(
                error.errno, f"service {service.name}: cannot listen on {listener}: {sockets.describe(error)}"
            ) from None
    return bound


def settle(config, held):
    """Make ``held`` exactly what ``config`` wants: close what it no longer names, renew what can be changed."""
    names = wanted(config)
    for name in [name for name in held if name not in names]:
        held.pop(name).close()
    for name, (service, _listener) in names.items():
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
