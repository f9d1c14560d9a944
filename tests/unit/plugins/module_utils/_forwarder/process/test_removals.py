# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Listener, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import removals

B = Backend("b", 80, ipv4="198.18.0.21", ipv6="2001:db8::21")
C = Backend("c", 80, ipv4="198.18.0.22")
V4, V6 = Listener("0.0.0.0", 80), Listener("::", 80)
WEB = Service("web", (V4, V6), (B, C))


@pytest.mark.parametrize(("changes", "found"), [
    ({}, []),
    ({"balance": "random", "backends": (C, replace(B, weight=7))}, []),
    ({"backends": (replace(B, ipv4="198.18.0.121"), C)}, []),
    (None, [{"reason": "service removed"}]),
    ({"protocol": "udp"}, [{"reason": "service removed"}]),
    ({"backends": (B,)}, [{"reason": "backend removed", "backends": [["c", "ipv4"]]}]),
    ({"backends": (replace(B, ipv6=None), C)}, [{"reason": "backend removed", "backends": [["b", "ipv6"]]}]),
    ({"backends": (replace(B, port=81), C)},
     [{"reason": "backend removed", "backends": [["b", "ipv4"], ["b", "ipv6"]]}]),
    ({"listen": (V4,)}, []),
])  # fmt: skip
def test_what_a_config_does_not_have_any_more_is_found(changes, found):
    services = () if changes is None else (replace(WEB, **changes),)
    after = list(removals.between(Config(1, (WEB,)), Config(1, services)))
    assert after == [{"service": "web", "after": 30.0, **removal} for removal in found]


@pytest.mark.parametrize(("service", "config", "seconds"), [(None, None, 30.0), (None, 60.0, 60.0), (5.0, 60.0, 5.0)])
def test_the_deadline_is_that_of_the_config_that_the_sessions_began_with(service, config, seconds):
    before = Config(1, (replace(WEB, drain_timeout=service),), drain_timeout=config)
    (removal,) = removals.between(before, Config(1, (), drain_timeout=1.0))
    assert removal["after"] == seconds


def test_a_message_has_a_bounded_number_of_names():
    many = tuple(replace(C, name=f"c{number}") for number in range(2 * removals.MOST_NAMES + 1))
    found = removals.between(Config(1, (replace(WEB, backends=many),)), Config(1, (replace(WEB, backends=(B,)),)))
    assert [len(removal["backends"]) for removal in found] == [removals.MOST_NAMES, removals.MOST_NAMES, 1]
