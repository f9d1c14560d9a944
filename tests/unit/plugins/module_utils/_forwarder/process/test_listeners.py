# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Listening sockets: bound all or none, kept over generations, closed when the config no longer needs them."""

from __future__ import annotations

import os
import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Listener, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import listeners

from ..worker_host import free_ports


def config(*ports):
    backend = Backend(name="b", ipv4="198.18.0.21", port=80)
    services = [Service(f"s{port}", (Listener("127.0.0.1", port),), (backend,)) for port in ports]
    return Config(proxy_id=1, services=tuple(services))


def connects(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_listeners_are_bound_kept_and_closed_as_the_config_says():
    first, second, third = free_ports(3)
    listening = listeners.bind_missing(config(first, second), 1, ())
    assert sorted(listening) == sorted([f"tcp:127.0.0.1:{first}#0", f"tcp:127.0.0.1:{second}#0"])
    kept = listening[f"tcp:127.0.0.1:{second}#0"]
    after = config(second, third)
    bound = listeners.bind_missing(after, 1, listening)
    assert list(bound) == [f"tcp:127.0.0.1:{third}#0"]
    listening.update(bound)
    listeners.settle(after, 1, listening)
    assert listening[f"tcp:127.0.0.1:{second}#0"] is kept
    assert [connects(port) for port in (first, second, third)] == [False, True, True]
    listeners.close_all(listening)
    assert not connects(second)


def test_all_listeners_are_bound_or_none():
    (free,) = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(listeners.ListenError) as caught:
            listeners.bind_missing(config(free, taken), 1, ())
    reason = f"service s{taken}: cannot listen on 127.0.0.1:{taken}: EADDRINUSE: Address already in use"
    assert caught.value.strerror == reason
    assert not connects(free)


def test_an_inherited_listener_accepts_and_is_close_on_exec():
    (port,) = free_ports(1)
    listening = listeners.bind_missing(config(port), 1, ())
    number = os.dup(listening[f"tcp:127.0.0.1:{port}#0"].fileno())
    os.set_inheritable(number, True)
    listeners.close_all(listening)
    adopted = listeners.adopt({"name": number})
    assert connects(port)
    assert adopted["name"].gettimeout() == 0.0
    assert not os.get_inheritable(number)
    listeners.close_all(adopted)


def test_each_slot_has_a_socket_that_stays_open_with_fewer_workers():
    (port,) = free_ports(1)
    listening = listeners.bind_missing(config(port), 3, ())
    names = [f"tcp:127.0.0.1:{port}#{slot}" for slot in range(3)]
    assert sorted(listening) == names
    listeners.settle(config(port), 1, listening)
    assert sorted(listening) == names, "closing one would reset the connections in its backlog"
    assert sorted(listeners.required(config(port), 2, listening)) == names
    assert sorted(listeners.required(config(port), 2)) == names[:2]
    assert not listeners.bind_missing(config(port), 3, listening)
    (other,) = free_ports(1)
    listening.update(listeners.bind_missing(config(other), 1, listening))
    listeners.settle(config(other), 1, listening)
    assert list(listening) == [f"tcp:127.0.0.1:{other}#0"]
    listeners.close_all(listening)
    assert not connects(port), "an address that is no longer named is closed in all slots"


def test_the_number_of_slots_is_configured_or_that_of_the_cpus(monkeypatch):
    assert listeners.slots_of(Config(proxy_id=1, services=(), workers=5)) == 5
    monkeypatch.setattr(listeners.os, "sched_getaffinity", lambda _pid: set(range(4)))
    assert listeners.slots_of(Config(proxy_id=1, services=())) == 4
    monkeypatch.setattr(listeners.os, "sched_getaffinity", lambda _pid: set(range(200)))
    assert listeners.slots_of(Config(proxy_id=1, services=())) == listeners.MAX_DEFAULT_SLOTS


@pytest.mark.parametrize(
    ("ports", "slots", "limit", "refused"), [(1000, 2, 2256, False), (1000, 2, 2255, True), (1, 64, 320, False)]
)
def test_more_listeners_than_the_limit_of_open_files_are_refused(ports, slots, limit, refused):
    error = listeners.beyond_limit(config(*range(1, ports + 1)), slots, limit)
    assert bool(error) == refused
    assert not error or error.startswith("services: 2000 listening sockets (one per address, port and worker) are too")
