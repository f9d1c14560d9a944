# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Properties of any two random documents, on a real kernel."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.tests.unit.plugins.module_utils._routing.random_documents import any_document
from hypothesis import HealthCheck, Phase, given, settings

from tests.support.routing import listing

HOSTS = ["router", "a", "a2", "b"]

FOREIGN = (
    "ip rule add priority 1100 to 10.0.0.0/8 lookup 20999 protocol 150",
    "ip -6 rule add priority 1100 iif lo to 2001:db8:77::/48 lookup 20999 protocol 150",
    "ip route add 10.0.0.0/8 via 198.18.0.1 table 20999 proto static",
    "ip addr add 198.18.0.130/32 dev eth0",
)


@pytest.fixture(scope="module")
def lab(lab):
    for command in FOREIGN:
        lab["b"].run(command.split())
    return lab


# No shrinking, which would repeat hundreds of runs.
bounded = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def contents(host) -> tuple[list[str], str]:
    """The listing of the host, without the order of addresses and of rules with equal priority."""
    return sorted(listing(host)), host.run(["sysctl", "-n", "net.ipv4.conf.all.accept_redirects"]).stdout


@bounded
@given(first=any_document(), second=any_document())
def test_any_two_random_documents_apply_purge_and_read_back(lab, first, second):
    b, apply = lab["b"], lab.engine.apply
    start = contents(b)
    try:
        apply(b, second, allow_empty=True)
        clean = contents(b)
        lab.engine.remove(b, "return_path")
        assert contents(b) == start, "removed without a trace, and nobody else's touched"
        apply(b, first, allow_empty=True)
        before = contents(b)
        foretold = apply(b, second, allow_empty=True, check=True)
        assert contents(b) == before, "check mode touches nothing"
        done = apply(b, second, allow_empty=True)
        assert done == foretold
        assert contents(b) == clean, "what was there before makes no difference"
        assert apply(b, second, allow_empty=True).changes == ()
        assert contents(b) == clean
    finally:
        lab.engine.remove(b, "return_path")
    assert contents(b) == start
