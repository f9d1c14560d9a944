# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""routing_state passes its options to the engine and returns the outcome."""

from __future__ import annotations

import json
import time

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import engine
from ansible_collections.trueip.l4proxy.plugins.modules import routing_state

from ..module_utils._routing import fakes


@pytest.fixture
def host(tmp_path, monkeypatch):
    """The module's engine works on a fake host."""
    fake = fakes.FakeHost(tmp_path)
    monkeypatch.setattr(engine, "Host", lambda runner: fake.engine)
    return fake


@pytest.fixture
def run(host, warnings, tmp_path, call):
    """Call the module; its JSON."""
    defaults = {"owner": "return_path", "directory": str(tmp_path / "routing.d")}
    return lambda check=False, **options: call(routing_state, check, **{**defaults, **options})


def test_present_applies_and_stores_the_document(run, host, tmp_path):
    result = run(document=fakes.RETURN_PATH)
    assert result["changed"]
    assert result["changes"][1] == "add ip rule 1101: from all fwmark 0xb/0xff unreachable"
    assert result["owned"]["rules"] == fakes.RETURN_PATH["rules"]
    assert len(result["diff"]) == 2
    assert len(host.kernel.held_rules) == 2
    assert json.loads((tmp_path / "routing.d" / "return_path.json").read_text())["protocol"] == 202
    again = run(document=fakes.RETURN_PATH)
    assert (again["changed"], again["changes"], again["diff"]) == (False, [], [])


def test_check_mode_changes_nothing_and_absent_removes_everything(run, host, tmp_path):
    assert run(check=True, document=fakes.RETURN_PATH)["changed"]
    assert host.kernel.calls == []
    assert not (tmp_path / "routing.d").exists()
    run(document=fakes.RETURN_PATH)
    assert run(state="absent")["changed"]
    assert host.kernel.held_rules == []
    assert not run(state="absent")["changed"]


def test_a_drain_is_reported(run, host):
    host.connections = {11: 1}
    run(document=fakes.RETURN_PATH)
    result = run(document={**fakes.RETURN_PATH, "marks": [], "rules": [], "routes": []}, drain=60)
    assert len(result["retiring"]) == 4
    assert len(host.kernel.held_rules) == 2


def test_a_later_run_ends_an_unlimited_drain_and_reports_the_connections(run, host, warnings, monkeypatch):
    host.connections, started = {11: 3}, time.time()

    def later(seconds: float, drain) -> dict:
        monkeypatch.setattr(routing_state.time, "time", lambda: started + seconds)
        return run(document={**EMPTY, "sysctls": []}, drain=drain, allow_empty=True)

    run(document=fakes.RETURN_PATH)
    assert len(later(0, "unlimited")["retiring"]) == 5
    assert (later(10**7, "unlimited")["changed"], later(10**7, 60)["cut"]) == (False, [])
    result = later(10**7 + 60, 60)
    assert (result["retiring"], host.kernel.held_rules) == ([], [])
    assert warnings == result["cut"] == ["drain of nft mark a 0xb/0xff via 198.18.0.11 ended: 3 connections cut"]


def test_without_persist_no_file_is_stored_and_allow_empty_accepts_an_empty_document(run, tmp_path):
    run(document=fakes.RETURN_PATH, persist=False)
    assert not (tmp_path / "routing.d").exists()
    assert not run(document=EMPTY, allow_empty=True).get("failed")


def test_without_purge_unlisted_objects_stay(run, host):
    run(document=fakes.RETURN_PATH)
    smaller = {**fakes.RETURN_PATH, "rules": fakes.RETURN_PATH["rules"][1:]}
    run(document=smaller, purge=False)
    assert len(host.kernel.held_rules) == 2
    run(document=smaller)
    assert len(host.kernel.held_rules) == 1


EMPTY = {key: fakes.RETURN_PATH[key] for key in ("schema", "owner", "protocol")}


@pytest.mark.parametrize(("options", "expected"), [
    ({"document": fakes.RETURN_PATH, "drain": -1}, "drain: '-1' is neither a number of seconds (0 or more)"),
    ({}, "state is present but all of the following are missing: document"),
    ({"document": EMPTY}, "is empty and would remove all"),
    ({"document": {**EMPTY, "rules": [{}]}}, "document: rules[0].family: required\nrules[0].priority: required"),
    ({"document": fakes.RETURN_PATH, "owner": "other"}, "owner: return_path differs from the option owner, other"),
    ({"owner": "other", "state": "absent"}, "owner other: its protocol number is not known"),
])  # fmt: skip
def test_invalid_options_are_refused(run, host, options, expected):
    result = run(**options)
    assert result["failed"]
    assert expected in result["msg"]
    assert host.kernel.calls == []


@pytest.mark.parametrize("package", ["python3-pyroute2", "nftables"])
def test_a_missing_package_is_named(run, host, warnings, package):
    host.no_pyroute2, host.nft.missing = package == "python3-pyroute2", package == "nftables"
    failed = run(document=fakes.RETURN_PATH)
    assert failed["failed"]
    assert f"install the package {package}" in failed["msg"]
    assert run(check=True, document=fakes.RETURN_PATH)["changed"]
    assert package in warnings[0]


def test_a_silent_proxy_is_a_warning(run, warnings):
    marks = [{**fakes.RETURN_PATH["marks"][0], "mac": None}]
    result = run(document={**fakes.RETURN_PATH, "marks": marks})
    assert result["waiting"] == ["waiting for 198.18.0.11 to answer: the MAC of proxy a is not known yet"]
    assert warnings == [f"applied, but still {result['waiting'][0]}"]
