# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What most of these tests begin with; ``lab`` and ``forwarder`` are fixtures of each file."""

from __future__ import annotations

import pytest

from tests.support import forwarding as fl


@pytest.fixture(scope="module")
def servers(lab):
    """nginx on port 8080 of every backend, by name; the body of its answers is that name."""
    return {name: lab.nginx(name, ports=[8080]) for name in fl.BACKENDS}


@pytest.fixture
def listener(lab, request):
    """The test itself is the server: a listener on b, port 9000 or the file's LISTENER, of the test's ``family``."""
    port = getattr(request.module, "LISTENER", 9000)
    family = request.getfixturevalue("family") if "family" in request.fixturenames else "ipv4"
    with fl.listen(lab, "b", port, family) as listener:
        yield listener


@pytest.fixture
def new_lines(forwarder):
    """A function that returns the log lines of the connections of this test."""
    before = forwarder.settled()
    return lambda count: forwarder.connections(before + count)[before:]
