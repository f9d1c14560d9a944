# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from .changing_host import ADDRESSES, CHANGES, ChangingHost, Server
from .worker_host import TcpHost


@pytest.fixture
def host(tmp_path):
    host = TcpHost(tmp_path)
    yield host
    host.close()


@pytest.fixture
def make(tmp_path):
    """A function that makes a ChangingHost."""
    hosts = []

    def host(*services, **options):
        hosts.append(ChangingHost(tmp_path, *services, **options))
        return hosts[-1]

    yield host
    for each in hosts:
        each.close()


@pytest.fixture
def serve():
    """A function that makes a Server."""
    servers = []

    def server(*arguments, **options):
        servers.append(Server(*arguments, **options))
        return servers[-1]

    yield server
    for each in servers:
        each.close()


@pytest.fixture(params=ADDRESSES)
def family(request):
    return request.param


@pytest.fixture(params=CHANGES)
def change(request):
    return CHANGES[request.param]
