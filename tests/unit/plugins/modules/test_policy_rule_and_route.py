# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Results of policy_rule and policy_route; test_single_object and tests/kernel test their work."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import engine
from ansible_collections.trueip.l4proxy.plugins.modules import policy_route, policy_rule

from ..module_utils._routing import fakes

# (module, key of the result, options, part of the result)
MODULES = [
    (policy_rule, "rule", {"priority": 1000, "from": "198.18.0.121", "table": "100"},
     {"family": "ipv4", "priority": 1000, "action": "lookup", "table": 100, "src": "198.18.0.121/32"}),
    (policy_route, "route", {"table": "100", "dst": "default", "via": "198.18.0.11"},
     {"family": "ipv4", "table": 100, "dst": "default", "via": "198.18.0.11", "dev": "eth0"}),
]  # fmt: skip


@pytest.fixture(params=MODULES, ids=[key for _module, key, _options, _expected in MODULES])
def case(request, tmp_path, monkeypatch, warnings, call) -> SimpleNamespace:
    """A module with its options and expected result; ``call`` runs it on the fake ``host``."""
    module, key, options, expected = request.param
    host = fakes.FakeHost(tmp_path)
    monkeypatch.setattr(engine, "Host", lambda runner: host.engine)

    def run(check=False, **more):
        return call(module, check, **options, **more)

    return SimpleNamespace(key=key, expected=expected, host=host, call=run)


def test_the_result_contains_the_object(case):
    result = case.call()[case.key]
    assert {name: result[name] for name in case.expected} == case.expected
    assert case.call(state="absent")[case.key] == {}


def test_without_pyroute2_the_module_fails_and_check_mode_warns(case, warnings):
    case.host.no_pyroute2 = True
    result = case.call()
    assert result["failed"]
    assert "install the package python3-pyroute2" in result["msg"]
    assert case.call(check=True)["changed"]
    assert "python3-pyroute2" in warnings[0]
