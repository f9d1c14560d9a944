# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What holds for every check: a row in a table, findings when it raises, and no verdict from unread facts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor import finding, registry
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts.unread import Unread

from . import cases
from .cases import BACKEND, PROXY, backend, proxy
from .checks import (
    test_drift,
    test_foreign_rules,
    test_kernel_datapath,
    test_limits,
    test_packet_filters,
    test_prerequisites,
    test_proxies,
    test_relays,
    test_services,
    test_source_nat,
    test_sysctls,
)
from .checks.test_kernel_datapath import KERNEL

TABLES = [test_drift, test_foreign_rules, test_limits, test_packet_filters, test_prerequisites, test_proxies]
TABLES += [test_kernel_datapath, test_relays, test_services, test_source_nat, test_sysctls]


@pytest.mark.parametrize("facts", [BACKEND, PROXY, backend(applied=False), proxy(applied=False)])
def test_a_healthy_host_has_no_problem(facts):
    assert cases.problems(facts) == []


def test_each_check_has_a_row_with_a_problem_that_it_reports():
    rows = [row for table in TABLES for row in table.PROBLEMS]
    assert {finding.split()[1] for _facts, finding, _words in rows} == {check.id for check in registry.CHECKS}


@pytest.mark.parametrize("check", registry.CHECKS, ids=lambda check: check.id)
@pytest.mark.parametrize("facts", [BACKEND, PROXY, backend(applied=False)], ids=["backend", "proxy", "preflight"])
def test_an_exception_in_a_check_becomes_a_finding_and_the_other_checks_still_run(monkeypatch, check, facts):
    def raises(_facts):
        yield finding.fail("x", "found before it raised", "w", "f")
        raise KeyError("dst")

    others = [found.id for found in registry.examine(facts, [check.id])]
    checks = tuple(replace(known, run=raises) if known is check else known for known in registry.CHECKS)
    monkeypatch.setattr(registry, "CHECKS", checks)
    findings = registry.examine(facts)
    assert [found.id for found in findings if found.id != check.id] == others
    own = [found for found in findings if found.id == check.id]
    assert [found.status for found in own] == (["fail", "warn"] if check.applies_to(facts) else [])
    if own:
        assert own[1].what.startswith(f"check {check.id} failed: KeyError: 'dst' (test_registry.py, line ")
        assert f"l4proxy_ignore_findings: [{check.id}]" in own[1].fix


@pytest.mark.parametrize("facts", [BACKEND, PROXY, KERNEL], ids=["backend", "proxy", "kernel"])
@pytest.mark.parametrize("name", [
    *("links", "settings", "peers", "backends", "replies", "rules", "routes", "addresses", "redirected", "ruleset"),
    *("sockets", "relays", "arp", "conntrack", "units", "contest", "drop_ins", "forwarder", "drift", "own"),
    *("translated", "kernel_targets", "silent"),
])  # fmt: skip
def test_an_unread_fact_makes_checks_skip_and_never_report_a_problem(facts, name):
    findings = registry.examine(replace(facts, **{name: Unread("it hangs")}))
    assert [found.line for found in findings if found.status in ("fail", "warn")] == []
    skipped = {found.id for found in findings if found.status == "skip"}
    assert all(found.what == "it hangs" for found in findings if found.id in skipped)
    if name == "ruleset":
        filters = {"firewall", "source_nat", "mark_clobbered", "untracked", "relayed", "containers", "marks"}
        filters |= {"forward_filter", "others_forward", "virtual_address"}
        assert skipped == filters & {check.id for check in registry.CHECKS if check.applies_to(facts)}


# (facts of a host without pyroute2, nft or another tool; the checks that are skipped there)
@pytest.mark.parametrize(("facts", "checks"), [
    (backend(rules=None, routes=None), {"own_traffic", "taken"}),
    (proxy(rules=None, routes=None), {"own_traffic", "taken", "arp"}),
    (backend(ruleset=None), {"firewall", "source_nat", "mark_clobbered", "untracked", "containers"}),
    (backend(redirected=None, conntrack=None, units=None), {"redirected", "conntrack", "keeper"}),
    (backend(missing={"python3-pyroute2": "x"}, applied=False), {"packages"}),
])  # fmt: skip
def test_a_missing_tool_makes_checks_skip_and_never_report_a_problem(facts, checks):
    assert {found.id for found in registry.examine(facts) if found.status == "skip"} == checks
    assert cases.problems(facts) == []
