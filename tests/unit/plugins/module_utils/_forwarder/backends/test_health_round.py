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

HTTP = replace(HEALTH, http=HealthHttp())

# The check; whether the spoofed connection is established: then its exchange decides; the errno of the spoofed and of
# the own probe; what the round shows; and whether the own probe was sent at all.
TEST_ROUNDS = [
    ("both work", HEALTH, False, 0, 0, RoundResult(True, True, 0, 0), False),
    ("a refusal arrives", HEALTH, False, REFUSED, 0, RoundResult(False, True, REFUSED, 0), False),
    ("a reset arrives", HEALTH, False, RESET, 0, RoundResult(False, True, RESET, 0), False),
    ("an unexpected response", HEALTH, False, UNEXPECTED, 0, RoundResult(False, True, UNEXPECTED, 0), False),
    ("the return path is broken", HEALTH, False, SILENCE, 0, RoundResult(True, False, 0, SILENCE), True),
    ("unreachable for clients", HEALTH, False, UNREACHABLE, 0, RoundResult(True, False, 0, UNREACHABLE), True),
    ("the host is down", HEALTH, False, SILENCE, SILENCE, RoundResult(False, False, SILENCE, SILENCE), True),
    ("refused to us, silent to clients", HEALTH, False, SILENCE, REFUSED,
     RoundResult(False, False, REFUSED, SILENCE), True),
    ("HTTP: both work", HTTP, True, 0, 0, RoundResult(True, True, 0, 0), False),
    ("HTTP: a wrong status", HTTP, True, HTTP_STATUS + 503, 0, RoundResult(False, True, HTTP_STATUS + 503, 0), False),
    ("HTTP: closed at once", HTTP, True, CLOSED, 0, RoundResult(False, True, CLOSED, 0), False),
    ("HTTP: a reset after the handshake", HTTP, True, RESET, 0, RoundResult(False, True, RESET, 0), False),
    ("HTTP: no answer after the handshake", HTTP, True, SILENCE, 0, RoundResult(False, True, NO_ANSWER, 0), False),
    ("HTTP: a refusal arrives", HTTP, False, REFUSED, 0, RoundResult(False, True, REFUSED, 0), False),
    ("HTTP: only the proxy's own address gets an answer", HTTP, False, SILENCE, 0,
     RoundResult(True, False, 0, SILENCE), True),
    ("HTTP: the proxy's own address gets a wrong answer", HTTP, False, SILENCE, UNEXPECTED,
     RoundResult(False, False, UNEXPECTED, SILENCE), True),
    ("HTTP: the host is down", HTTP, False, SILENCE, SILENCE, RoundResult(False, False, SILENCE, SILENCE), True),
]  # fmt: skip


@pytest.mark.parametrize(("health", "established", "spoofed", "own", "result", "second"), **rows(TEST_ROUNDS))
def test_a_round_shows_the_server_and_the_return_path(
    network, start, health, established, spoofed, own, result, second
):
    network.established = {B} if established else set()
    network.says = {(B, True): spoofed, (B, False): own}
    (target,) = start(service(B, health=health)).checker._targets
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
