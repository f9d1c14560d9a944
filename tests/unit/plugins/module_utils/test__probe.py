# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils import _probe
from ansible_collections.trueip.l4proxy.plugins.module_utils._probe import Attempt

TARGET = _probe.Target("198.18.0.21", 8080, "198.51.100.11", "web: b")

OK, REFUSED = Attempt(0, 0.0004), Attempt(errno.ECONNREFUSED, 0.001)
SILENT, UNREACHABLE = Attempt(errno.ETIMEDOUT, 3.5), Attempt(errno.EHOSTUNREACH, 3.0)

VERDICTS = [
    # spoofed attempt, route lookup, attempt from the own address; step at fault
    (OK, "local", None, "established"),
    (REFUSED, "local", None, "server"),
    (Attempt(errno.EPERM, 0.0), "local", None, "capability"),
    (Attempt(errno.EADDRNOTAVAIL, 0.0), "local", None, "source"),
    (Attempt(errno.EADDRINUSE, 0.0), "local", None, "source"),
    (SILENT, "unicast via 198.18.0.1 dev eth0", OK, "local_delivery"),
    (SILENT, "unicast via 198.18.0.1 dev eth0", SILENT, "local_delivery"),
    (SILENT, "EXDEV, a martian source or rp_filter", OK, "local_delivery"),
    (SILENT, "local", OK, "return_path"),
    (SILENT, "local", REFUSED, "return_path"),
    (SILENT, "local", SILENT, "backend"),
    (UNREACHABLE, "local", UNREACHABLE, "backend"),
]


@pytest.mark.parametrize(("spoofed", "lookup", "own", "step"), VERDICTS)
def test_a_verdict_names_the_step_at_fault(spoofed, lookup, own, step):
    verdict = _probe.diagnose(TARGET, spoofed, lookup, own)
    assert (verdict.step, verdict.seconds) == (step, spoofed.seconds)
    assert verdict.sentence.startswith("web: b: ")


def test_the_sentence_names_target_and_source_and_an_ipv6_endpoint_has_brackets():
    sentence = _probe.diagnose(TARGET, OK).sentence
    assert sentence == "web: b: established with 198.18.0.21:8080 as 198.51.100.11 in 0.4 ms"
    assert _probe.Target("2001:db8::21", 80, "2001:db8:ffff::11").endpoint == "[2001:db8::21]:80"
