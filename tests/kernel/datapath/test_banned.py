# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Banned clients of kernel services: refused, and their open connections end with their next packet."""

from __future__ import annotations

import json

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host import bans

from tests.kernel.datapath.support import Client
from tests.support.addresses import FAMILIES
from tests.support.waiting import eventually

HOSTS = ["client", "router", "a", "b", "c", "d"]
pytestmark = pytest.mark.usefixtures("servers")


@pytest.fixture
def published(tmp_path):
    """A function that publishes ranges as the forwarder does, and returns what the keeper makes of them."""
    path = tmp_path / "denied.json"
    reader = bans.Reader(str(path))

    def publish(family, *ranges, service=""):
        lists = [{"source": "bans", "service": service, "family": family, "ranges": ranges}]
        path.write_text(json.dumps({"schema": 1, "lists": lists}), encoding="ascii")
        return reader().lists

    return publish


def test_a_banned_client_is_refused_and_its_connection_ends(lab, proxy, published, protocol, family):
    services = [proxy.service(protocol, each) for each in FAMILIES]
    proxy.serve(*services)
    client = Client(lab, protocol, family)
    banned, control = client.session(client.source(5)), client.session(client.source(6))
    # Overlapping ranges, as only a hostile publisher writes them.
    ranges = [[client.source(4), client.source(5), 0], [client.source(5), client.source(5), 0]]
    proxy.serve(*services, bans=published(family, *ranges, service="web"))
    assert client.is_refused(client.source(5))
    if protocol == "tcp":
        banned.go_on()
        eventually(banned.is_reset, "its next packet is answered by RST")
    else:
        with pytest.raises(AssertionError):
            banned.go_on()
    control.go_on()
    assert not (protocol == "tcp" and control.is_reset())
    assert not client.is_refused(client.source(6)), "the control"
    assert proxy.refused()["denied"] >= 2
    for other in (published(family, *ranges, service="mail"), published(family, [*ranges[0][:2], 1])):
        proxy.serve(*services, bans=other)
        assert not client.is_refused(client.source(5)), "a ban of another service, and one that has ended"
