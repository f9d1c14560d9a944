# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab with routing set by hand, servers on its backends, and what reads the log of the file's ``forwarder``."""

from __future__ import annotations

import pytest

from tests.kernel.forwarder.sessions import SERVERS, Asker, give_many_addresses
from tests.support import tcp, udp
from tests.support.forwarding import BACKENDS, Forwarder, raise_lab, wire

PORT = 9000  # of the servers, unless said otherwise


@pytest.fixture(scope="module")
def lab():
    with raise_lab("") as lab:
        wire(lab)
        give_many_addresses(lab)
        yield lab


@pytest.fixture(params=["tcp", "udp"])
def protocol(request):
    """A test that has this argument runs once for each protocol."""
    return request.param


@pytest.fixture(scope="module")
def servers(lab):
    """nginx on port 8080 of every backend, by name; the body of its answers is that name."""
    return {name: lab.nginx(name, ports=[8080]) for name in BACKENDS}


@pytest.fixture(scope="module")
def udp_servers(lab):
    """Servers on every backend, by name; see :class:`udp.Server`."""
    with udp.serving(lab, PORT) as servers:
        yield servers


@pytest.fixture(scope="module")
def session_servers(lab):
    """TCP and UDP servers on every backend, by (protocol, name): a client is told the name, and stays."""
    servers = {(protocol, name): cls(lab, name, PORT) for protocol, cls in SERVERS.items() for name in BACKENDS}
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture
def ask(lab, session_servers, protocol, family, request):
    """What opens sessions at the file's PORT."""
    asker = Asker(lab, protocol, family, request.module.PORT)
    yield asker
    for session in asker.sessions:
        session.end()


@pytest.fixture(scope="module")
def forwarder(lab, request):
    """A forwarder with the file's ``document(lab)``, which all tests of the file share."""
    with Forwarder(lab, request.module.document(lab)) as forwarder:
        yield forwarder


@pytest.fixture
def listener(lab, request):
    """The test itself is the server: a listener on b, port 9000 or the file's LISTENER, of the test's ``family``."""
    port = getattr(request.module, "LISTENER", PORT)
    family = request.getfixturevalue("family") if "family" in request.fixturenames else "ipv4"
    with tcp.listen(lab, "b", port, family) as listener:
        yield listener


@pytest.fixture
def new_lines(forwarder):
    """A function that returns the log lines of the connections of this test."""
    before = forwarder.settled()
    return lambda count: forwarder.connections(before + count)[before:]
