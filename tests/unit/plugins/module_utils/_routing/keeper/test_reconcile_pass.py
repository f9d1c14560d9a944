# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Passes over documents that are invalid, missing, or changed while the keeper runs."""

from __future__ import annotations

import fcntl
import json

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import store

from ..fakes import RETURN_PATH

FIRST, SECOND = RETURN_PATH["rules"]
NOON = 1795521600


def test_an_invalid_document_is_reported_and_the_others_are_applied(world, host):
    invalid = {"schema": 1, "owner": "local_delivery", "protocol": 201, "rules": [{}], "x": 1}
    path = world.directory / "local_delivery.json"
    path.write_text(json.dumps(invalid))
    world.keep(1)
    assert len(host.kernel.held_rules) == 2
    for error in ("x: unknown key", "rules[0].family: required", "rules[0].action: required"):
        assert f"{path}: {error}" in world.statuses[-1]
        assert any(f"{path}: {error}" in problem for problem in world.state["problems"])


def test_a_missing_package_is_reported_and_the_document_is_applied_once_it_is_installed(world, host):
    host.nft.missing = True
    world.at(30, lambda: setattr(host.nft, "missing", False), [])
    world.keep(61)
    assert world.statuses[0] == "return_path: marks need the command nft: install the package nftables"
    assert host.nft.tables
    assert world.statuses[-1].startswith("keeping return_path")


def test_without_documents_there_is_nothing_to_keep(world):
    (world.directory / "return_path.json").unlink()
    world.keep(1)
    assert world.statuses == ["nothing to keep: no documents"]


def test_a_document_that_a_run_has_changed_is_applied_and_is_no_repair(world, host):
    world.at(11, lambda: world.store({**RETURN_PATH, "rules": [FIRST]}), [])
    world.keep(20)
    assert len(host.kernel.held_rules) == 1
    assert world.repairs == 0
    assert world.passes == [0.0, 11.01]


def test_a_changed_document_is_applied_though_the_host_is_as_before(world, host):
    """The host's fingerprint is the one with which the previous document was stable."""
    world.store({**RETURN_PATH, "rules": []})
    world.at(100, lambda: world.store(RETURN_PATH), [])
    world.keep(150)
    assert len(host.kernel.held_rules) == 2
    assert world.passes == [0.0, 60.0, 100.01]


@pytest.mark.parametrize(("retire_at", "until", "left"), [(NOON + 42, 50, 1), (NOON + 4000, 200, 2)])
def test_a_retiring_rule_is_removed_in_time_without_a_repair_or_a_comparison(world, host, retire_at, until, left):
    retiring = {**FIRST, "retiring": True, "retire_at": retire_at}
    world.at(10, lambda: world.store({**RETURN_PATH, "rules": [retiring, SECOND]}), [])
    host.connections = {11: 1}
    world.observe(41, lambda: len(host.kernel.held_rules))
    world.keep(until)
    assert (world.observed, len(host.kernel.held_rules), world.repairs) == ([2], left, 0)
    assert world.comparisons == [], "fingerprints say nothing while an object is retiring"


def test_connections_that_the_end_of_a_drain_cuts_are_logged_and_counted(world, host, caplog):
    retiring = {**FIRST, "retiring": True, "retire_at": NOON + 42}
    world.at(10, lambda: world.store({**RETURN_PATH, "rules": [retiring, SECOND]}), [])
    host.connections = {11: 3}
    caplog.set_level("INFO")
    world.observe(40, lambda: world.state_file.status_line)
    world.keep(50)
    assert "; 1 replaced object kept while connections need it" in world.observed[0]
    (message,) = (record.message for record in caplog.records if "drain of" in record.message)
    assert (
        message == "return_path: drain of ip rule 1100: from all fwmark 0xb/0xff lookup 20111 ended: 3 connections cut"
    )
    world.received.clear()
    world.keep(130)  # the document still lists the rule, and the connections may still be there
    assert (world.state_file.cut, "kept while" in world.state_file.status_line) == (3, False)


def test_counting_that_costs_much_is_done_less_often(world, host):
    retiring = {**FIRST, "retiring": True, "retire_at": NOON + 4000}
    world.at(10, lambda: world.store({**RETURN_PATH, "rules": [retiring, SECOND]}), [])
    host.connections = {11: 1}
    world.cost = 0.1
    world.keep(70)
    assert world.passes == [0.0, 10.01, 30.01, 50.01]


def test_documents_are_read_under_the_lock(world, host, monkeypatch):
    """A run changes the kernel before it stores its document; its notifications must not bring back the old one."""
    locked = []
    load_all = store.load_all

    def spy(path):
        with open(host.lock, encoding="ascii") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked.append(True)
        return load_all(path)

    monkeypatch.setattr(store, "load_all", spy)
    world.keep(1)
    assert locked == [True]
