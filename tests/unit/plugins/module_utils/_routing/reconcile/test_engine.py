# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reconciliation on a fake host: what is applied, refused, undone, waited for and reported."""

from __future__ import annotations

import copy
import errno
import json

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing import errors
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents, store
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Route, Rule
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import engine, needs

from ..fakes import RETURN_PATH


@pytest.fixture
def directory(tmp_path):
    return str(tmp_path / "routing.d")


def apply(host, data=None, **options):
    document = documents.load(RETURN_PATH if data is None else data)
    return engine.reconcile(document, host.engine, engine.Options(**options))


def variant(section: str, **values) -> dict:
    """RETURN_PATH with values of the first object of a section changed."""
    data = copy.deepcopy(RETURN_PATH)
    data[section][0].update(values)
    return data


SENTENCES = (
    "set sysctl net.ipv4.conf.all.accept_redirects: 1 -> 0",
    "add ip rule 1101: from all fwmark 0xb/0xff unreachable",
    "add ip route default via 198.18.0.11 dev eth0 table 20111",
    "add ip rule 1100: from all fwmark 0xb/0xff lookup 20111",
    "add the nft table of marks: a (0xb)",
)


def test_everything_is_applied_and_stored(host, directory):
    outcome = apply(host, directory=directory)
    assert outcome.changes == (*SENTENCES, f"write {directory}/return_path.json")
    assert outcome.changed
    assert len(host.kernel.held_rules) == 2
    assert outcome.owned["routes"] == [{**RETURN_PATH["routes"][0], "type": "unicast", "dev": "eth0"}]
    assert outcome.owned["sysctls"] == RETURN_PATH["sysctls"]
    assert [pair["after_header"] for pair in outcome.diff] == ["routing", f"{directory}/return_path.json"]
    host.kernel.calls.clear()
    second = apply(host, directory=directory)
    assert (second.changed, second.diff, host.kernel.calls) == (False, (), [])


def test_check_mode_reports_the_same_changes_and_makes_none(host, directory):
    before = host.snapshot()
    foretold = apply(host, directory=directory, check=True)
    assert host.snapshot() == before
    assert not host.lock.exists()
    assert foretold == apply(host, directory=directory)


def test_learnt_redirects_are_flushed_when_redirects_are_disabled(host):
    apply(host)
    assert host.flush.read_text() == "-1"
    assert host.kernel.forgotten == 1


def test_remove_restores_the_host(host, directory, tmp_path):
    before = host.snapshot()
    apply(host, directory=directory)
    outcome = engine.remove("return_path", host.engine, directory=directory)
    assert host.snapshot() == before
    assert outcome.changes[-1] == f"remove {directory}/return_path.json"
    assert not (tmp_path / "routing.d" / "return_path.json").exists()
    assert not engine.remove("return_path", host.engine, directory=directory).changed


def test_a_protocol_belongs_to_the_owner_whose_stored_document_has_it(host, directory):
    data = {**RETURN_PATH, "owner": "mine", "protocol": 210}
    with pytest.raises(errors.Refused, match="owner mine: its protocol number is not known"):
        engine.remove("mine", host.engine, directory=directory)
    apply(host, data, directory=directory)
    with pytest.raises(errors.Refused, match="protocol: 210 already belongs to owner mine"):
        apply(host, {**data, "owner": "yours"}, directory=directory)
    engine.remove("mine", host.engine, directory=directory)
    assert host.kernel.held_rules == []


EMPTY = {key: RETURN_PATH[key] for key in ("schema", "owner", "protocol")}


def test_an_empty_document_needs_allow_empty(host):
    apply(host)
    before = host.snapshot()
    with pytest.raises(errors.Refused, match="would remove all that this owner has"):
        apply(host, EMPTY)
    assert host.snapshot() == before
    assert apply(host, EMPTY, allow_empty=True).changed
    assert host.kernel.held_rules == []


def test_a_table_with_foreign_routes_is_refused_before_any_change(host):
    host.kernel.held_routes.append((Route("ipv4", 20111, "10.0.0.0/8", dev="eth0"), 4))
    with pytest.raises(errors.Refused, match="table 20111 already holds routes of another owner"):
        apply(host)
    assert host.kernel.calls == []


@pytest.mark.parametrize("step", ["add ip rule 1101", "set ip route", "add ip rule 1100"])
def test_a_failing_change_undoes_the_changes_before_it(host, directory, step):
    before, host.kernel.fail = host.snapshot(), step
    sentence = r"Cannot allocate memory \(ENOMEM\); the . changes made so far were undone"
    with pytest.raises(errors.ApplyError, match=sentence):
        apply(host, directory=directory)
    assert host.snapshot() == before


def test_a_document_that_cannot_be_stored_undoes_all_changes(host, tmp_path):
    (tmp_path / "routing.d").mkdir()
    (tmp_path / "routing.d" / "return_path.json").mkdir()
    before = host.snapshot()
    with pytest.raises((errors.ApplyError, OSError)):
        apply(host, directory=str(tmp_path / "routing.d"))
    assert host.snapshot() == before


def test_changes_that_do_not_read_back_are_undone(host):
    before = host.snapshot()
    host.kernel.lose = "set ip route"
    host.kernel.fail = "remove ip route"  # it is not there, as the kernel would say
    with pytest.raises(errors.ApplyError, match=r"the host still needs: add ip route default via 198\.18\.0\.11"):
        apply(host)
    assert host.snapshot() == before


def test_a_failure_to_undo_is_reported(host):
    def broken(rule, protocol):
        raise OSError(1, "Operation not permitted")

    host.kernel.fail, host.kernel.remove_rule = "ip rule 1100", broken
    with pytest.raises(errors.ApplyError) as caught:
        apply(host)
    assert "undoing failed for: add ip rule 1101: from all fwmark 0xb/0xff unreachable" in str(caught.value)
    assert "were undone" not in str(caught.value)


ADDRESS = {"family": "ipv4", "address": "198.18.0.121", "dev": "eth0"}


@pytest.mark.parametrize(("data", "expected"), [
    (variant("routes", via="198.18.5.5"), "waiting for 198.18.5.5 to be on-link"),
    (variant("routes", dev="eth7"), "waiting for link eth7 to be up"),
    (variant("routes", via="198.18.0.21"), "198.18.0.21 is an address of this host itself"),
    (variant("routes", src="198.18.0.22"), "waiting for address 198.18.0.22 to be on this host"),
    (variant("rules", iif="eth7"), "waiting for link eth7 to exist"),
    ({**RETURN_PATH, "addresses": [{**ADDRESS, "dev": "eth7"}]}, "waiting for link eth7 to be up"),
    ({**RETURN_PATH, "addresses": [{**ADDRESS, "dev": "eth8"}]}, "waiting for link eth8 to be up"),
])  # fmt: skip
def test_nothing_is_changed_while_something_is_missing(host, data, expected):
    with pytest.raises(errors.NotReady) as caught:
        apply(host, data)
    assert caught.value.errors[0].startswith(expected)
    assert host.kernel.calls == []


@pytest.mark.parametrize("data", [
    variant("rules", iif="eth8"),  # its interface is down
    variant("routes", via="198.51.100.1", dev="eth0", onlink=True),
])  # fmt: skip
def test_the_interface_of_a_rule_need_not_be_up_and_an_onlink_next_hop_is_not_looked_up(host, data):
    assert apply(host, data).changed


def macs(host) -> list:
    return [item for table in host.snapshot()[2].values() for mark in table.marks for item in mark.macs]


def test_all_but_the_mac_of_a_silent_proxy_is_applied_and_the_mac_follows_the_neighbour_table(host):
    data = variant("marks", mac=None)
    waiting = ("waiting for 198.18.0.11 to answer: the MAC of proxy a is not known yet",)
    assert apply(host, data).waiting == waiting
    assert len(host.kernel.held_rules) == 2, "the rest is applied"
    assert not apply(host, data).changed
    for mac in ("02:00:00:00:00:11", "02:00:00:00:00:aa"):
        host.kernel.neighbours["198.18.0.11"] = mac
        outcome = apply(host, data)
        assert (outcome.changed, outcome.waiting, macs(host)) == (True, (), [mac])
    host.kernel.neighbours.clear()
    outcome = apply(host, data)
    assert (outcome.changed, outcome.waiting) == (False, ()), "a proxy that falls silent keeps its MAC"


def test_a_declared_mac_that_differs_is_a_warning_and_two_proxies_behind_one_are_refused(host):
    host.kernel.neighbours = {"198.18.0.11": "02:00:00:00:00:aa", "198.18.0.12": "02:00:00:00:00:aa"}
    warning = "proxy a is expected at 02:00:00:00:00:11, but 198.18.0.11 is at 02:00:00:00:00:aa"
    assert apply(host).warnings == (warning,)
    assert macs(host) == ["02:00:00:00:00:11"]
    data = variant("marks", mac=None)
    data["marks"].append({"name": "a2", "id": 12, "mask": 255, "mac": None, "via": ["198.18.0.12"]})
    with pytest.raises(errors.Refused, match="proxies a and a2 both answer from 02:00:00:00:00:aa"):
        apply(host, data)


@pytest.fixture(params=["python3-pyroute2", "nftables"])
def missing(host, request) -> str:
    """The package that is missing on the host."""
    host.no_pyroute2 = request.param == "python3-pyroute2"
    host.nft.missing = request.param == "nftables"
    return request.param


def test_a_missing_package_is_named_and_only_a_warning_in_check_mode(host, missing):
    with pytest.raises(errors.MissingPackage, match=f"install the package {missing}"):
        apply(host)
    outcome = apply(host, check=True)
    assert len(outcome.changes) == len(SENTENCES)
    assert missing in outcome.warnings[0]


@pytest.mark.usefixtures("missing")
def test_removing_needs_no_package_if_the_owner_never_had_anything(host):
    assert not engine.remove("return_path", host.engine).changed


def test_removing_needs_its_packages_if_the_owner_holds_something(host):
    apply(host)
    host.no_pyroute2 = True
    with pytest.raises(errors.MissingPackage, match="install the package python3-pyroute2"):
        engine.remove("return_path", host.engine)


def test_a_sysctl_is_restored_if_flushing_redirects_fails(host):
    before = host.snapshot()

    def fail():
        raise OSError(errno.EPERM, "no")

    host.kernel.forget_redirects = fail
    with pytest.raises(errors.ApplyError, match="nothing was changed"):
        apply(host)
    assert host.snapshot() == before


def test_without_marks_nft_is_not_needed(host):
    host.nft.missing = True
    apply(host, {**RETURN_PATH, "marks": []})
    assert len(host.kernel.held_rules) == 2


def test_retiring_objects_are_not_waited_for(host):
    data = variant("routes", via="198.18.5.5")
    for item in (*data["rules"], *data["routes"], *data["marks"]):
        item["retiring"] = True
    outcome = apply(host, data)
    assert (outcome.waiting, host.kernel.held_rules) == ((), [])


BY_ADDRESS = {**RETURN_PATH, "addresses": [ADDRESS]}
BY_ADDRESS["routes"] = [{**RETURN_PATH["routes"][0], "src": "198.18.0.121"}]


def test_an_address_is_added_before_the_route_that_needs_it(host):
    outcome = apply(host, BY_ADDRESS)
    assert outcome.changes[1] == "add ip addr 198.18.0.121 dev eth0"
    assert outcome.owned["addresses"] == [ADDRESS]
    assert not apply(host, BY_ADDRESS).changed


SMALLER = {**RETURN_PATH, "rules": [{"family": "ipv4", "priority": 9, "iif": "lo", "action": "lookup", "table": 9}]}
SMALLER |= {"routes": [], "marks": []}


def drained(host, directory, **options):
    """Apply BY_ADDRESS, of which mark and address have a connection, and then SMALLER with a drain of 60 s."""
    apply(host, BY_ADDRESS, directory=directory)
    host.connections = {11: 1, needs.To: 2}
    return apply(host, SMALLER, directory=directory, drain=60, **options)


def test_a_drain_keeps_and_stores_objects_with_connections(host, directory):
    outcome = drained(host, directory, now=1000.5)
    assert outcome.changes == ("add ip rule 9: from all iif lo lookup 9", f"write {directory}/return_path.json")
    assert len(outcome.retiring) == 5
    assert outcome.next_due == 29.5
    stored = json.loads((host.lock.parent / "routing.d" / "return_path.json").read_text())
    assert [rule.get("retire_at") for rule in stored["rules"]] == [None, 1060, 1060]
    assert stored["addresses"] == [{**ADDRESS, "retiring": True, "retire_at": 1060}]
    later = apply(host, SMALLER, directory=directory, drain=60, now=1058)
    assert (later.changes, later.next_due, later.cut) == ((), 2, ()), "the time is not extended"
    ended = apply(host, SMALLER, directory=directory, drain=60, now=1060)
    assert (ended.retiring, ended.next_due) == ((), None)
    assert [cut.sentence for cut in ended.cut] == [
        "drain of nft mark a 0xb/0xff via 198.18.0.11 ended: 1 connection cut",
        "drain of ip addr 198.18.0.121 dev eth0 ended: 2 connections cut",
    ]
    assert len(host.kernel.held_rules) == 1
    assert "retiring" not in json.dumps(ended.owned)


def test_a_run_with_the_stored_document_ends_a_drain(host, directory):
    drained(host, directory, now=1000)
    stored = json.loads((host.lock.parent / "routing.d" / "return_path.json").read_text())
    assert apply(host, stored).next_due is None, "without a time nothing expires"
    host.connections = {needs.To: 1}
    outcome = apply(host, stored, now=1030)
    assert outcome.retiring == ("ip addr 198.18.0.121 dev eth0",)
    assert len(host.kernel.held_rules) == 1


def test_what_the_keeper_has_removed_leaves_the_stored_document_silently(host, directory):
    """The keeper does not write documents, so the next run does. It changes nothing that has an effect."""
    drained(host, directory, now=1000)
    path = host.lock.parent / "routing.d" / "return_path.json"
    apply(host, json.loads(path.read_text()), now=1060)  # as the keeper does
    before = host.snapshot()
    for check in (True, False):
        assert "settle_at" in path.read_text()
        run = apply(host, SMALLER, directory=directory, drain=60, now=1070, check=check)
        assert (run.changes, run.kinds, run.diff) == ((), (), ())
    assert host.snapshot() == before
    assert path.read_text() == store.content_of(documents.load(SMALLER))


def test_what_a_run_removes_or_limits_is_a_change_of_the_stored_document(host, directory):
    drained(host, directory, now=1000)
    path, written = host.lock.parent / "routing.d" / "return_path.json", f"write {directory}/return_path.json"
    capped = apply(host, SMALLER, directory=directory, drain=40, now=1001)
    assert (capped.changes, json.loads(path.read_text())["addresses"][0]["retire_at"]) == ((written,), 1041)
    ended = apply(host, SMALLER, directory=directory, drain=60, now=1041)
    assert "remove ip addr 198.18.0.121 dev eth0" in ended.changes
    assert ended.changes[-1] == written


def test_a_document_without_retiring_objects_has_no_time_to_settle(host, directory):
    drained(host, directory, now=1000)
    whole = {**BY_ADDRESS, "rules": [*BY_ADDRESS["rules"], *SMALLER["rules"]]}
    again = apply(host, whole, directory=directory, drain=60, now=1001)
    assert f"write {directory}/return_path.json" in again.changes, "a drain ends"
    assert "settle_at" not in (host.lock.parent / "routing.d" / "return_path.json").read_text()
    assert not apply(host, whole, directory=directory, drain=60, now=2000).changed


def test_without_purge_nothing_retires(host, directory):
    assert drained(host, directory, now=1000, purge=False).retiring == ()


def test_moved_rules_do_not_retire(host, directory):
    """They do not count as objects of an earlier document, neither when they move nor when they move back."""
    other = (Rule("ipv4", 1099, table=51820), 3)
    host.kernel.held_rules.append(other)

    def priorities():
        return sorted(rule.priority for rule, protocol in host.kernel.held_rules if protocol == 202)

    done = apply(host, directory=directory, drain=60, now=1000.0)
    assert (priorities(), done.retiring) == ([1097, 1098], ())
    assert "the rules of return_path are at priority 1097 and 1098, in front of `ip rule 1099: " in done.warnings[0]
    assert not apply(host, directory=directory, drain=60, now=1001.0).changed
    host.kernel.held_rules.remove(other)
    done = apply(host, directory=directory, drain=60, now=1002.0)
    assert (priorities(), done.retiring, done.warnings) == ([1100, 1101], (), ())


def test_the_priorities_of_a_custom_document_stay(host):
    host.kernel.held_rules.append((Rule("ipv4", 1099, table=51820), 3))
    apply(host, {**RETURN_PATH, "owner": "mine", "protocol": 210})
    assert sorted(rule.priority for rule, protocol in host.kernel.held_rules if protocol == 210) == [1100, 1101]
