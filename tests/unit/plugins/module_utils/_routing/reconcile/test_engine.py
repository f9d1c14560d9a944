# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""gather, apply and engine on a host of plain Python: what is refused, undone, waited for and told."""

from __future__ import annotations

import copy
import errno
import json

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing import errors
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Route, Rule
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import engine
from ansible_collections.trueip.l4proxy.tests.unit.plugins.module_utils._routing.fakes import RETURN_PATH, FakeHost


@pytest.fixture
def host(tmp_path):
    return FakeHost(tmp_path)


@pytest.fixture
def directory(tmp_path):
    return str(tmp_path / "routing.d")


def apply(host, data=None, **options):
    return engine.reconcile(
        documents.load(RETURN_PATH if data is None else data), host.engine, engine.Options(**options)
    )


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
    assert outcome.owned["routes"] == [
        {"family": "ipv4", "table": 20111, "dst": "default", "type": "unicast", "via": "198.18.0.11", "dev": "eth0"}
    ]
    assert outcome.owned["sysctls"] == RETURN_PATH["sysctls"]
    assert [pair["after_header"] for pair in outcome.diff] == ["routing", f"{directory}/return_path.json"]


def test_the_second_time_nothing_happens(host, directory):
    apply(host, directory=directory)
    host.kernel.calls.clear()
    outcome = apply(host, directory=directory)
    assert (outcome.changed, outcome.diff, host.kernel.calls) == (False, (), [])


def test_check_mode_says_the_same_and_does_nothing(host, directory):
    before = host.snapshot()
    foretold = apply(host, directory=directory, check=True)
    assert host.snapshot() == before
    assert not host.lock.exists()
    assert foretold == apply(host, directory=directory)


def test_redirects_learnt_are_flushed_when_they_are_switched_off(host):
    apply(host)
    assert host.flush.read_text() == "-1"
    assert host.kernel.forgotten == 1


def test_absent_takes_everything_away(host, directory, tmp_path):
    before = host.snapshot()
    apply(host, directory=directory)
    outcome = engine.remove("return_path", host.engine, directory=directory)
    assert host.snapshot() == before
    assert outcome.changes[-1] == f"remove {directory}/return_path.json"
    assert not (tmp_path / "routing.d" / "return_path.json").exists()
    assert not engine.remove("return_path", host.engine, directory=directory).changed


def test_absent_of_an_unknown_owner_takes_the_number_from_its_stored_document(host, directory):
    data = {**RETURN_PATH, "owner": "mine", "protocol": 210}
    with pytest.raises(errors.Refused, match="owner mine: its protocol number is not known"):
        engine.remove("mine", host.engine, directory=directory)
    apply(host, data, directory=directory)
    engine.remove("mine", host.engine, directory=directory)
    assert host.kernel.held_rules == []


EMPTY = {key: RETURN_PATH[key] for key in ("schema", "owner", "protocol")}


def test_an_empty_document_needs_a_word(host):
    apply(host)
    before = host.snapshot()
    with pytest.raises(errors.Refused, match="would remove all that this owner has"):
        apply(host, EMPTY)
    assert host.snapshot() == before
    assert apply(host, EMPTY, allow_empty=True).changed
    assert host.kernel.held_rules == []


def test_another_owners_protocol_is_refused(host, directory):
    apply(host, {**RETURN_PATH, "owner": "mine", "protocol": 210}, directory=directory)
    with pytest.raises(errors.Refused, match="protocol: 210 already belongs to owner mine"):
        apply(host, {**RETURN_PATH, "owner": "yours", "protocol": 210}, directory=directory)


def test_a_table_of_others_is_refused_before_any_change(host):
    host.kernel.held_routes.append((Route("ipv4", 20111, "10.0.0.0/8", dev="eth0"), 4))
    with pytest.raises(errors.Refused, match="table 20111 already holds routes of another owner"):
        apply(host)
    assert host.kernel.calls == []


@pytest.mark.parametrize("step", ["add ip rule 1101", "set ip route", "add ip rule 1100"])
def test_a_failing_step_undoes_the_others(host, directory, step):
    before = host.snapshot()
    host.kernel.fail = step
    with pytest.raises(
        errors.ApplyError, match=r"Cannot allocate memory \(ENOMEM\); the . changes before it were undone"
    ):
        apply(host, directory=directory)
    assert host.snapshot() == before


def test_a_file_that_cannot_be_written_undoes_all(host, tmp_path):
    (tmp_path / "routing.d").mkdir()
    (tmp_path / "routing.d" / "return_path.json").mkdir()
    before = host.snapshot()
    with pytest.raises((errors.ApplyError, OSError)):
        apply(host, directory=str(tmp_path / "routing.d"))
    assert host.snapshot() == before


def test_what_does_not_read_back_is_undone(host):
    before = host.snapshot()
    host.kernel.lose = "set ip route"
    host.kernel.fail = "remove ip route"  # it is not there, as the kernel would say
    with pytest.raises(errors.ApplyError, match=r"the host still needs: add ip route default via 198\.18\.0\.11"):
        apply(host)
    assert host.snapshot() == before


def test_an_undoing_that_fails_is_told(host):
    def broken(rule, protocol):
        raise OSError(1, "Operation not permitted")

    host.kernel.fail, host.kernel.remove_rule = "ip rule 1100", broken
    with pytest.raises(errors.ApplyError) as caught:
        apply(host)
    assert "undoing failed for: add ip rule 1101: from all fwmark 0xb/0xff unreachable" in str(caught.value)
    assert "nothing was left" not in str(caught.value)


NOT_READY = [
    ({"via": "198.18.5.5"}, "waiting for 198.18.5.5 to be on-link"),
    ({"dev": "eth7"}, "waiting for link eth7 to be up"),
    ({"via": "198.18.0.21"}, "198.18.0.21 is an address of this host itself"),
    ({"src": "198.18.0.22"}, "waiting for address 198.18.0.22 to be on this host"),
]


@pytest.mark.parametrize(("values", "expected"), NOT_READY)
def test_what_is_not_there_yet(host, values, expected):
    with pytest.raises(errors.NotReady) as caught:
        apply(host, variant("routes", **values))
    assert caught.value.errors[0].startswith(expected)
    assert host.kernel.calls == []


def macs(host) -> list:
    return [item for table in host.snapshot()[2].values() for mark in table.marks for item in mark.macs]


def test_a_mac_is_found_in_the_neighbour_table(host):
    host.kernel.neighbours["198.18.0.11"] = "02:00:00:00:00:11"
    assert apply(host, variant("marks", mac=None)).waiting == ()
    assert macs(host) == ["02:00:00:00:00:11"]


def test_a_silent_proxy_is_waited_for(host):
    outcome = apply(host, variant("marks", mac=None))
    assert outcome.waiting == ("waiting for 198.18.0.11 to answer: the MAC of proxy a is not known yet",)
    assert len(host.kernel.held_rules) == 2, "the rest is applied"
    assert not apply(host, variant("marks", mac=None)).changed


def test_a_proxy_that_falls_silent_keeps_its_mac(host):
    host.kernel.neighbours["198.18.0.11"] = "02:00:00:00:00:11"
    apply(host, variant("marks", mac=None))
    host.kernel.neighbours.clear()
    outcome = apply(host, variant("marks", mac=None))
    assert (outcome.changed, outcome.waiting) == (False, ())


def test_a_proxy_with_a_new_mac_is_followed(host):
    for mac in ("02:00:00:00:00:11", "02:00:00:00:00:aa"):
        host.kernel.neighbours["198.18.0.11"] = mac
        assert apply(host, variant("marks", mac=None)).changed
        assert macs(host) == [mac]


def test_a_declared_mac_is_compared(host):
    host.kernel.neighbours["198.18.0.11"] = "02:00:00:00:00:aa"
    assert apply(host).warnings == (
        "proxy a is expected at 02:00:00:00:00:11, but 198.18.0.11 is at 02:00:00:00:00:aa",
    )
    assert macs(host) == ["02:00:00:00:00:11"]


def test_two_proxies_behind_one_mac_are_refused(host):
    host.kernel.neighbours = {"198.18.0.11": "02:00:00:00:00:11", "198.18.0.12": "02:00:00:00:00:11"}
    data = variant("marks", mac=None)
    data["marks"].append({"name": "a2", "id": 12, "mask": 255, "mac": None, "via": ["198.18.0.12"]})
    with pytest.raises(errors.Refused, match="proxies a and a2 both answer from 02:00:00:00:00:11"):
        apply(host, data)


@pytest.mark.parametrize("missing", ["python3-pyroute2", "nftables"])
def test_a_missing_tool(host, missing):
    host.no_pyroute2 = missing == "python3-pyroute2"
    host.nft.missing = missing == "nftables"
    with pytest.raises(errors.MissingPackage, match=f"install the package {missing}"):
        apply(host)
    outcome = apply(host, check=True)
    assert len(outcome.changes) == len(SENTENCES)
    assert missing in outcome.warnings[0]


@pytest.mark.parametrize("missing", ["python3-pyroute2", "nftables"])
def test_removing_needs_no_tool_where_the_owner_never_had_anything(host, missing):
    host.no_pyroute2 = missing == "python3-pyroute2"
    host.nft.missing = missing == "nftables"
    outcome = engine.remove("return_path", host.engine)
    assert not outcome.changed


def test_removing_needs_its_tools_where_the_owner_holds_something(host):
    apply(host)
    host.no_pyroute2 = True
    with pytest.raises(errors.MissingPackage, match="install the package python3-pyroute2"):
        engine.remove("return_path", host.engine)


def test_a_setting_whose_flush_fails_is_put_back(host):
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


def test_rules_of_others_are_left_alone(host):
    foreign = (Rule("ipv4", 1150, table=9, iif="lo"), 150)
    host.kernel.held_rules.append(foreign)
    apply(host)
    engine.remove("return_path", host.engine)
    assert host.kernel.held_rules == [foreign]


def test_a_retiring_proxy_that_is_gone_is_not_waited_for(host):
    data = copy.deepcopy(RETURN_PATH)
    for section in ("rules", "routes", "marks"):
        for item in data[section]:
            item["retiring"] = True
    data["routes"][0]["via"] = "198.18.5.5"
    outcome = apply(host, data)
    assert (outcome.waiting, host.kernel.held_rules) == ((), [])


ADDRESS = {"family": "ipv4", "address": "198.18.0.121", "dev": "eth0"}
BY_ADDRESS = {**RETURN_PATH, "addresses": [ADDRESS]}
BY_ADDRESS["routes"] = [{**RETURN_PATH["routes"][0], "src": "198.18.0.121"}]


def test_an_address_comes_before_the_route_that_names_it(host):
    outcome = apply(host, BY_ADDRESS)
    assert outcome.changes[1] == "add ip addr 198.18.0.121 dev eth0"
    assert outcome.owned["addresses"] == [ADDRESS]
    assert not apply(host, BY_ADDRESS).changed


@pytest.mark.parametrize(("dev", "expected"), [("eth7", "link eth7 to be up"), ("eth8", "link eth8 to be up")])
def test_the_link_of_an_address_is_waited_for(host, dev, expected):
    with pytest.raises(errors.NotReady, match=f"waiting for {expected}"):
        apply(host, {**RETURN_PATH, "addresses": [{**ADDRESS, "dev": dev}]})
    assert host.kernel.calls == []


def test_the_interface_of_a_rule_is_waited_for(host):
    data = variant("rules", iif="eth7")
    with pytest.raises(errors.NotReady, match="waiting for link eth7 to exist"):
        apply(host, data)
    assert apply(host, variant("rules", iif="eth8")).changed, "it need not be up"


def test_an_onlink_next_hop_is_believed(host):
    assert apply(host, variant("routes", via="198.51.100.1", dev="eth0", onlink=True)).changed


SMALLER = {**RETURN_PATH, "rules": [{"family": "ipv4", "priority": 9, "iif": "lo", "action": "lookup", "table": 9}]}
SMALLER |= {"routes": [], "marks": []}


def drained(host, directory, **options):
    return apply(host, SMALLER, directory=directory, **options)


def test_a_drain_keeps_what_has_connections_and_stores_it(host, directory):
    apply(host, BY_ADDRESS, directory=directory)
    host.connections = {11: 1}
    outcome = drained(host, directory, drain=60, now=1000.5)
    assert outcome.changes == (
        "add ip rule 9: from all iif lo lookup 9",
        f"write {directory}/return_path.json",
    )
    assert len(outcome.retiring) == 5
    assert outcome.next_due == 5
    stored = json.loads((host.lock.parent / "routing.d" / "return_path.json").read_text())
    assert [rule.get("retire_at") for rule in stored["rules"]] == [None, 1060, 1060]
    assert stored["addresses"] == [{**ADDRESS, "retiring": True, "retire_at": 1060}]
    later = drained(host, directory, drain=60, now=1058)
    assert (later.changes, later.next_due) == ((), 2), "the time is not put off"
    ended = drained(host, directory, drain=60, now=1060)
    assert (ended.retiring, ended.next_due) == ((), None)
    assert len(host.kernel.held_rules) == 1
    assert "retiring" not in json.dumps(ended.owned)


def test_the_keeper_ends_a_drain_with_the_stored_document(host, directory):
    apply(host, BY_ADDRESS, directory=directory)
    host.connections = {11: 1}
    drained(host, directory, drain=60, now=1000)
    stored = json.loads((host.lock.parent / "routing.d" / "return_path.json").read_text())
    assert apply(host, stored).next_due is None, "without the time nothing is over"
    host.connections = {}
    outcome = apply(host, stored, now=1030)
    assert outcome.retiring == ("ip addr 198.18.0.121 dev eth0",)
    assert len(host.kernel.held_rules) == 1


def test_without_purge_nothing_retires(host, directory):
    apply(host, BY_ADDRESS, directory=directory)
    host.connections = {11: 1}
    assert drained(host, directory, drain=60, now=1000, purge=False).retiring == ()


def test_rules_that_had_to_move_are_those_of_the_document(host, directory):
    """They are not taken for what is left of an earlier document, neither in front nor when they go back."""
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


def test_a_document_that_somebody_wrote_keeps_its_priorities(host):
    host.kernel.held_rules.append((Rule("ipv4", 1099, table=51820), 3))
    apply(host, {**RETURN_PATH, "owner": "mine", "protocol": 210})
    assert sorted(rule.priority for rule, protocol in host.kernel.held_rules if protocol == 210) == [1100, 1101]
