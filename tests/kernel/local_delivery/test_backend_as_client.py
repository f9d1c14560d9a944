# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A client that is a backend reaches another backend only if the rules of local delivery have an interface."""

from __future__ import annotations

import pytest

from tests.support import routing
from tests.support.addresses import address_of
from tests.support.routing import PORT, handshake, return_path

HOSTS = ["router", "a", "b", "c"]


@pytest.fixture(scope="module")
def lab(lab):
    lab.nginx("c", ports=[PORT])
    for name in ("b", "c"):
        lab.engine.apply(lab[name], return_path(lab["a"]))
    return lab


def local_delivery(lab, **selectors) -> dict:
    data = routing.local_delivery(lab["b"], lab["c"])
    return {**data, "rules": [{**rule, **selectors} for rule in data["rules"]]}


def test_a_backend_as_a_client_reaches_another_backend(lab, family):
    source, target = address_of(lab["b"], family), address_of(lab["c"], family)
    lab.engine.apply(lab["a"], local_delivery(lab, iif="eth0"))
    assert handshake(lab["a"], source, target) == "established"
    # The negative control: without the interface, the rules catch a's own packets from b's address.
    lab.engine.apply(lab["a"], local_delivery(lab))
    assert handshake(lab["a"], source, target) != "established"


def test_other_clients_are_served_as_before(lab, family):
    source = {"ipv4": "198.51.100.11", "ipv6": "2001:db8:ffff::11"}[family]
    lab.engine.apply(lab["a"], local_delivery(lab, iif="eth0"))
    assert handshake(lab["a"], source, address_of(lab["c"], family)) == "established"
    assert not lab.engine.apply(lab["a"], local_delivery(lab, iif="eth0")).changed
