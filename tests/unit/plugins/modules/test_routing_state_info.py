# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""routing_state_info passes its options to the doctor and returns the findings."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.modules import routing_state_info as module

from ..module_utils._routing import fakes
from ..module_utils._routing.doctor import cases, fake_doctor


@pytest.fixture
def doctor(tmp_path, monkeypatch):
    fake = fake_doctor.FakeDoctor(tmp_path, monkeypatch)
    monkeypatch.setattr(module, "Host", lambda runner: fake.sources.host)
    return fake


@pytest.fixture
def run(doctor, warnings, tmp_path, call):
    """Call the module; its JSON. The machine's own units and filters are no business of the test's."""
    defaults = {"directory": str(doctor.stored), "config": str(tmp_path / "none")}
    defaults["ignore_findings"] = ["keeper", "networkd"]
    return lambda check=False, **options: call(module, check, **{**defaults, **options})


def statuses(result: dict) -> list[str]:
    return [f"{one['status']} {one['id']}" for one in result["findings"] if one["status"] in ("fail", "warn")]


@pytest.mark.parametrize("check", [False, True])
def test_owned_and_foreign_objects_and_findings_are_returned(run, doctor, check):
    doctor.apply()
    doctor.host.kernel.held_rules.append((cases.foreign_rule(priority=100, table=254).value, 3))
    doctor.marked = cases.BY_ROUTER
    result = run(check=check)
    assert not result["changed"]
    route = {**fakes.RETURN_PATH["routes"][0], "type": "unicast", "dev": "eth0"}
    assert result["owners"]["return_path"]["routes"] == [route]
    assert [row["text"] for row in result["foreign"]["rules"]] == ["ip rule 100: from all lookup 254"]
    assert statuses(result)[:2] == ["fail rule_before", "fail lookup"]
    assert result["findings"][0]["line"].startswith("FAIL rule_before: `ip rule 100: from all lookup 254`")


def test_a_document_that_is_not_applied_yet_is_checked_and_a_finding_can_be_ignored(run, doctor):
    doctor.host.kernel.neighbours[cases.A] = "02:00:00:00:00:aa"
    result = run(document=fakes.RETURN_PATH, fail_on_findings=True)
    assert result["failed"]
    assert result["msg"].startswith("the path would not work, because of 1 finding(s):\n- FAIL proxy_mac: proxy a")
    assert statuses(result) == ["fail proxy_mac"]
    assert doctor.host.kernel.calls == []
    ignored = ["proxy_mac", "keeper", "networkd"]
    assert statuses(run(document=fakes.RETURN_PATH, fail_on_findings=True, ignore_findings=ignored)) == []


def test_findings_with_status_warn_are_warnings(run, doctor, warnings):
    rule = cases.foreign_rule(priority=2000, fwmark=0x10B, fwmask=0xFFF, table=7).value
    doctor.host.kernel.held_rules.append((rule, 3))
    result = run(document=fakes.RETURN_PATH, fail_on_findings=True)
    assert statuses(result) == ["warn mark_shared"]
    (warning,) = warnings
    assert warning.startswith("warn mark_shared: `ip rule 2000:")


def test_a_fresh_host_has_no_failures(run, doctor):
    doctor.host.no_pyroute2 = True
    doctor.outputs["nft -j list ruleset"] = None
    result = run(check=True, document=fakes.RETURN_PATH, fail_on_findings=True)
    assert result["owners"] is None
    assert "skip" in [one["status"] for one in result["findings"]]
    assert statuses(result) == []


def test_a_list_that_cannot_be_read_is_a_finding(run, doctor, monkeypatch):
    doctor.apply()
    monkeypatch.setattr(module.ownership, "owned", fake_doctor.raising(ValueError("a new attribute")))
    monkeypatch.setattr(module.ownership, "foreign", fake_doctor.raising(KeyError("dst")))
    result = run(fail_on_findings=True)
    assert (result["owners"], result["foreign"]) == (None, None)
    assert statuses(result)[:2] == ["warn unread", "warn unread"]


@pytest.mark.parametrize(("options", "said"), [
    ({"ignore_findings": ["proxy_mac", "nope"]}, "ignore_findings: there is no check nope"),
    ({"clients": ["192.0.2.1", "192.0.2.2"]}, "192.0.2.1 and 192.0.2.2 are both ipv4"),
    ({"ports": ["http"]}, "'http' is not PORT"),
    ({"document": {"schema": 1}}, "document: owner: required"),
])  # fmt: skip
def test_invalid_options_are_refused(run, options, said):
    result = run(**options)
    assert result["failed"]
    assert said in result["msg"]
