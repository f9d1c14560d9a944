# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One object on a fake host; tests/kernel/ansible/test_policy_modules.py tests a real kernel."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing import errors
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Route, Rule
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import single_object

RULE = Rule("ipv4", 1000, table=100, src="198.18.0.121")
ROUTE = Route("ipv4", 100, via="198.18.0.11")


def ensure(host, value, **options):
    return single_object.ensure(value, host.engine, protocol=203, **options)


@pytest.mark.parametrize("value", [RULE, ROUTE])
def test_an_object_is_added_once_and_removed_once(host, value):
    before = host.snapshot()
    foretold = ensure(host, value, check=True)
    assert (host.snapshot(), host.lock.exists()) == (before, False)
    done = ensure(host, value)
    assert done == foretold
    assert done.changed
    assert not ensure(host, value).changed
    assert ensure(host, value, present=False).changed
    assert host.snapshot() == before
    assert not ensure(host, value, present=False).changed


def test_a_new_rule_is_added_before_the_old_one_is_removed(host):
    ensure(host, RULE)
    host.kernel.calls.clear()
    ensure(host, Rule("ipv4", 1000, table=101, src="198.18.0.121"))
    assert [call.split()[0] for call in host.kernel.calls] == ["add", "remove"]


def test_the_main_table_may_contain_foreign_routes(host):
    host.kernel.held_routes.append((Route("ipv4", 254, "10.0.0.0/8", dev="eth0"), 4))
    assert ensure(host, Route("ipv4", 254, "10.1.0.0/16", via="198.18.0.11")).changed


def test_the_interface_of_a_route_is_looked_up_and_a_missing_one_is_refused(host):
    assert ensure(host, ROUTE).owned["routes"][0]["dev"] == "eth0"
    with pytest.raises(errors.Refused, match="cannot be applied now, waiting for link nope0 to exist"):
        ensure(host, Rule("ipv4", 1000, table=100, iif="nope0"))


@pytest.mark.parametrize(("value", "rules", "routes", "sentence"), [
    (RULE, [(RULE, 150)], [], "belongs to proto 150; remove it there, or set protocol: 150 to manage it here"),
    (RULE, [(RULE, 202)], [], "belongs to owner return_path (proto 202); remove it there"),
    (ROUTE, [], [(ROUTE, 4)], "belongs to proto static"),
    (ROUTE, [], [(Route("ipv4", 100, "10.0.0.0/8", dev="eth0"), 4)], "table 100 already holds routes of another owner"),
])  # fmt: skip
def test_objects_and_tables_of_others_are_refused(host, value, rules, routes, sentence):
    host.kernel.held_rules += rules
    host.kernel.held_routes += routes
    with pytest.raises(errors.Refused) as caught:
        ensure(host, value)
    assert sentence in str(caught.value)
    assert str(caught.value).endswith("remove it there") == (202 in [protocol for _rule, protocol in rules])
    assert host.kernel.calls == []


def test_a_failed_change_is_undone(host):
    ensure(host, RULE)
    before = host.snapshot()
    host.kernel.fail_at = len(host.kernel.calls) + 2
    with pytest.raises(errors.ApplyError, match=r"could not remove ip rule 1000: from 198\.18\.0\.121 lookup 100"):
        ensure(host, Rule("ipv4", 1000, table=101, src="198.18.0.121"))
    assert host.snapshot() == before


def test_an_object_that_does_not_read_back_is_an_error(host):
    host.kernel.lose = "add"
    host.kernel.fail = "remove"
    with pytest.raises(errors.ApplyError, match="the host still needs: add ip rule 1000"):
        ensure(host, RULE)


def test_without_pyroute2_check_mode_assumes_that_the_object_is_absent(host):
    host.no_pyroute2 = True
    with pytest.raises(errors.MissingPackage):
        ensure(host, RULE)
    outcome = ensure(host, RULE, check=True)
    assert (outcome.changed, "the object is assumed to be absent" in outcome.warnings[0]) == (True, True)
    assert not ensure(host, RULE, check=True, present=False).changed
