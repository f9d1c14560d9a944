# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Documentation, options and results of the module; what it does is in test_single_object.py and tests/kernel."""

from __future__ import annotations

from ansible_collections.trueip.l4proxy.plugins.modules import policy_route
from ansible_collections.trueip.l4proxy.tests.unit.plugins.modules import single_object

OPTIONS = {"table": "100", "dst": "default", "via": "198.18.0.11"}
EXPECTED = {"family": "ipv4", "table": 100, "dst": "default", "via": "198.18.0.11", "dev": "eth0"}


def test_documentation_and_argument_spec_agree():
    single_object.check_documentation(policy_route)


def test_the_object_is_in_the_result(tmp_path, monkeypatch, capsys):
    call = single_object.caller(policy_route, tmp_path, monkeypatch, capsys)
    found = call(**OPTIONS)["route"]
    assert {name: found[name] for name in EXPECTED} == EXPECTED
    assert call(**OPTIONS, state="absent")["route"] == {}


def test_without_pyroute2_the_package_is_named(tmp_path, monkeypatch, capsys):
    single_object.check_without_pyroute2(single_object.caller(policy_route, tmp_path, monkeypatch, capsys), OPTIONS)
