# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Proxy a forwards services in its kernel; b, c and d send their replies back through it."""

from __future__ import annotations

import pytest

from tests.kernel.datapath.support import BACKEND, BACKENDS, Proxy
from tests.kernel.forwarder.sessions import SERVERS, give_many_addresses
from tests.support.addresses import FAMILIES


@pytest.fixture(scope="module")
def proxy(lab):
    """Proxy a, which forwards nothing yet."""
    give_many_addresses(lab)
    for name in BACKENDS:
        for flag, family in zip(("-4", "-6"), FAMILIES):
            lab[name].run(["ip", flag, "route", "replace", "default", "via", getattr(lab["a"], family)])
    return Proxy(lab)


@pytest.fixture(autouse=True)
def _no_services(proxy):
    yield
    proxy.serve()
    proxy.forget()


@pytest.fixture(params=["tcp", "udp"])
def protocol(request):
    return request.param


@pytest.fixture
def servers(lab, protocol):
    """Servers that answer with their name, by host."""
    running = {name: SERVERS[protocol](lab, name, BACKEND) for name in BACKENDS}
    yield running
    for server in running.values():
        server.stop()
