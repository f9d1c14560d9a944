# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker takes a config in place, or not; and what becomes of the generations before."""

from __future__ import annotations

import gc
import os
from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import config_change

from ..changing_host import free, opened, service


def test_the_deadline_of_a_removal_is_that_of_the_config_that_still_had_it(make, serve):
    server = serve()
    web = service(server.backend())
    host = make(web, drain_timeout=7.0)
    opened(host, web, server)
    host.change(service(server.backend(), name="new"), drain_timeout=100.0)
    host.at_deadline(6.0)
    assert host.open() == {1: 1}
    host.change(service(server.backend(), name="newer"), drain_timeout=200.0)
    assert host.open() == {1: 1}, "a later change does not prolong it"
    host.at_deadline(7.0)
    assert host.open() == {}
    assert sorted(host.released()) == [1, 2]
    (line,) = host.events("sessions of a removal ended")
    assert (line["service"], line["sessions"]) == ("web", 1)


def test_a_change_that_is_discarded_or_refused_has_no_effect(make, serve):
    server = serve()
    web = service(server.backend())
    host = make(web)
    client, peer = opened(host, web, server)
    before = {number: region.row(0) for number, region in host.numbers.items()}
    gc.collect()  # what earlier tests have left
    descriptors = len(os.listdir("/proc/self/fd"))
    listener = free(web)
    change = host.prepare(service(server.backend("c"), name="new", port=listener.port))
    change.discard()
    for name in [name for name in host.held if str(listener) in name]:
        host.held.pop(name).close()
    host.numbers.pop(2).close()
    assert len(os.listdir("/proc/self/fd")) == descriptors - 2, "the sockets of web, which settle() closed"
    assert {number: region.row(0) for number, region in host.numbers.items()} == before
    client.sendall(b"more")
    assert host.received(peer)[0] == b"more"
    config = Config(proxy_id=1, services=(web,))
    region = shared_memory.Region(shared_memory.describe(config, 3))
    with pytest.raises(config_change.Refused, match="3 workers instead of 2"):
        config_change.prepare(host.worker, 3, config, region, {})
    region.close()
    region = shared_memory.Region(shared_memory.describe(config, 2))
    config = Config(proxy_id=1, services=(replace(web, listen=(listener,)),))
    with pytest.raises(config_change.Refused, match=f"the worker has no socket 'tcp:{listener}#0'"):
        config_change.prepare(host.worker, 3, config, region, {})
    region.close()
