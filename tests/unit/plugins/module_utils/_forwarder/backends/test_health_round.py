# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one round probes, and what it shows of the server and of the return path."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends.health_round import TICK
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends.health_state import RoundResult
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_check import HealthCheck
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_exchange import HealthHttp
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.probe_results import (
    CLOSED,
    HTTP_STATUS,
    NO_ANSWER,
    UNEXPECTED,
)

from tests.unit.tables import rows

from .simulation import HEALTH, REFUSED, RESET, SILENCE, SOURCES, UNREACHABLE, B, service

# The errno of the spoofed and of the own probe, what the round shows, and whether the own probe was sent at all.
TEST_ROUNDS = [
    ("both work", 0, 0, RoundResult(True, True, 0, 0), False),
    ("a refusal arrives", REFUSED, 0, RoundResult(False, True, REFUSED, 0), False),
    ("a reset arrives", RESET, 0, RoundResult(False, True, RESET, 0), False),
    ("an unexpected response", UNEXPECTED, 0, RoundResult(False, True, UNEXPECTED, 0), False),
    ("the return path is broken", SILENCE, 0, RoundResult(True, False, 0, SILENCE), True),
    ("unreachable for clients", UNREACHABLE, 0, RoundResult(True, False, 0, UNREACHABLE), True),
    ("the host is down", SILENCE, SILENCE, RoundResult(False, False, SILENCE, SILENCE), True),
    ("refused to us, silent to clients", SILENCE, REFUSED, RoundResult(False, False, REFUSED, SILENCE), True),
]


@pytest.mark.parametrize(("spoofed", "own", "result", "second"), **rows(TEST_ROUNDS))
def test_a_round_shows_the_server_and_the_return_path(network, start, spoofed, own, result, second):
    network.says = {(B, True): spoofed, (B, False): own}
    (target,) = start(service(B)).checker._targets
    target.begin(0.0)
    found, now = None, 0.0
    while found is None:
        assert now <= HEALTH.timeout + TICK, "a round ends at its timeout"
        found = target.poll(now)
        now += TICK
    assert found == result
    assert network.asked == [(B, SOURCES[0])] + [(B, None)] * second


# The same for a check with an exchange, and whether the spoofed connection is established: then its exchange decides.
TEST_EXCHANGES = [
    ("both work", True, 0, 0, RoundResult(True, True, 0, 0), False),
    ("a wrong status", True, HTTP_STATUS + 503, 0, RoundResult(False, True, HTTP_STATUS + 503, 0), False),
    ("closed at once", True, CLOSED, 0, RoundResult(False, True, CLOSED, 0), False),
    ("a reset after the handshake", True, RESET, 0, RoundResult(False, True, RESET, 0), False),
    ("no answer after the handshake", True, SILENCE, 0, RoundResult(False, True, NO_ANSWER, 0), False),
    ("a refusal arrives", False, REFUSED, 0, RoundResult(False, True, REFUSED, 0), False),
    ("only the proxy's own address gets an answer", False, SILENCE, 0, RoundResult(True, False, 0, SILENCE), True),
    ("the proxy's own address gets a wrong answer", False, SILENCE, UNEXPECTED,
     RoundResult(False, False, UNEXPECTED, SILENCE), True),
    ("the host is down", False, SILENCE, SILENCE, RoundResult(False, False, SILENCE, SILENCE), True),
]  # fmt: skip


@pytest.mark.parametrize(("established", "spoofed", "own", "result", "second"), **rows(TEST_EXCHANGES))
def test_an_exchange_over_a_spoofed_connection_shows_the_server(
    network, start, established, spoofed, own, result, second
):
    network.established = {B} if established else set()
    network.says = {(B, True): spoofed, (B, False): own}
    (target,) = start(service(B, health=replace(HEALTH, http=HealthHttp()))).checker._targets
    target.begin(0.0)
    found, now = None, 0.0
    while found is None:
        assert now <= HEALTH.timeout + TICK, "a round ends at its timeout"
        found = target.poll(now)
        now += TICK
    assert found == result
    assert [one[:2] for one in network.asked] == [(B, SOURCES[0])] + [(B, None)] * second


@pytest.mark.parametrize(("own", "result"), [
    (None, RoundResult(True, None, 0, errno.EPERM)),
    (errno.ENETUNREACH, RoundResult(False, None, errno.ENETUNREACH, errno.EPERM)),
    (errno.EMFILE, RoundResult(None, None, errno.EMFILE, errno.EPERM)),  # of this host: it says nothing of the server
])  # fmt: skip
def test_a_spoofed_probe_that_cannot_be_sent_shows_nothing_of_the_return_path(network, start, own, result):
    """As without CAP_NET_RAW: only the proxy's own address probes."""
    network.cannot = {SOURCES[0]: errno.EPERM, **({None: own} if own else {})}
    (target,) = start(service(B)).checker._targets
    target.begin(0.0)
    assert target.poll(0.0) == result


def test_each_character_of_request_and_expect_is_one_byte(network, start):
    health = HealthCheck(interval=2.0, timeout=1.0, source=SOURCES, request="\x00ä", expect="ÿ")
    start(service(B, protocol="udp", health=health)).turn(2.0)
    address, source, request, judge = network.asked[0]
    assert (address, source, request) == (B, SOURCES[0], b"\x00\xe4")
    assert [judge(data, True) for data in (b"\xff!", b"\xc3\xbf")] == [0, UNEXPECTED]


@pytest.mark.parametrize(
    "health", [HealthCheck(enabled=False, source=SOURCES), HealthCheck(source=SOURCES)], ids=["off", "no request"]
)
def test_without_health_checks_nothing_is_probed_and_the_state_is_unknown(network, start, health):
    run = start(service(B, protocol="udp", health=health), turn=10.0)
    assert network.asked == []
    assert run.states() == ["unknown"]
