# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One mark next to the other marks of its owner, on a fake host; tests/kernel tests a real one."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing import errors
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Mark
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.runner import Completed
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.marks import nft
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import single_mark

ONE = {"name": "lb1", "id": "0x300", "mask": "0xff00", "mac": ["02:00:00:00:00:0b"], "via": ["198.18.0.11"]}
OTHER = {"name": "up", "id": "512", "mask": "0xff00", "iif": "lo"}
LB1 = Mark("lb1", 0x300, 0xFF00, ("02:00:00:00:00:0b",), ("198.18.0.11",))
UP = Mark("up", 0x200, 0xFF00, iif="lo")


def present(host, options: dict, **arguments):
    mark = single_mark.read(options)
    outcome = single_mark.ensure(mark.name, mark, host.engine, owner="packet_mark", **arguments)
    assert outcome.after.engine == "nftables"
    return outcome


def absent(host, name: str, **arguments):
    return single_mark.ensure(name, None, host.engine, owner="packet_mark", **arguments)


def held(host) -> tuple[Mark, ...]:
    listing = host.nft.tables.get("l4proxy_packet_mark", [])
    return nft.observe("packet_mark", {"nftables": listing}).marks


@pytest.mark.parametrize(("options", "mark"), [
    (ONE, LB1),
    (OTHER, UP),
    ({**ONE, "mac": ["02-00-00-00-00-0B", "02:00:00:00:00:0c"], "conntrack": False},
     Mark("lb1", 0x300, 0xFF00, ("02:00:00:00:00:0b", "02:00:00:00:00:0c"), ("198.18.0.11",), conntrack=False)),
    ({"name": "s", "id": 1, "mask": 1, "transparent": True}, Mark("s", 1, 1, transparent=True)),
])  # fmt: skip
def test_options_are_read_as_a_mark(options, mark):
    assert single_mark.read(options) == mark


UNREADABLE = [
    ({"id": "0x10b", "mask": "0xff"}, "id: 0x10b has bits outside its mask 0xff"),
    ({"id": "0"}, "id: 0 is not a mark"),
    ({"id": None}, "id: required"),
    ({"mask": "x"}, "mask: 'x' is not a mask"),
    ({"mac": ["02:00:00:00:00"]}, "mac: '02:00:00:00:00' is not a MAC address"),
    ({"mac": ["ff:ff:ff:ff:ff:ff"]}, "is not the MAC address of one interface"),
    ({"mac": None}, "mac: required, or iif, or transparent"),
    ({"mac": None, "transparent": False}, "mac: required, or iif, or transparent"),
    ({"mac": None, "iif": "eth+"}, "iif: 'eth+' is not the name of a network interface"),
    ({"iif": "eth0"}, "iif: cannot be combined with mac"),
    ({"mac": None, "transparent": True}, "via: has no meaning with transparent"),
    ({"via": ["b"]}, "via: 'b' does not appear to be an IPv4 or IPv6 address"),
    ({"name": "a b"}, "name: 'a b' is not a mark's name"),
]


@pytest.mark.parametrize(("options", "sentence"), UNREADABLE)
def test_invalid_options_are_reported_by_name(options, sentence):
    with pytest.raises(errors.DocumentError) as caught:
        single_mark.read({**ONE, **options})
    assert sentence in caught.value.errors[0]


@pytest.mark.parametrize(("owner", "sentence"), [
    ("return_path", "owner: the marks of return_path come from its document"),
    ("Mine", "owner: 'Mine' is not an owner"),
])  # fmt: skip
def test_an_invalid_owner_or_one_with_a_document_is_refused(owner, sentence):
    with pytest.raises(errors.DocumentError, match=sentence):
        single_mark.owner_of({"owner": owner})


def test_adding_and_removing_a_mark_keeps_the_others(host):
    assert present(host, ONE).changed
    assert present(host, OTHER).changed
    assert held(host) == (UP, LB1)
    assert not present(host, ONE).changed
    assert present(host, {**ONE, "id": "0x400"}).changed
    assert [mark.id for mark in held(host)] == [0x200, 0x400]
    (left,) = absent(host, "lb1").after.marks
    assert single_mark.dump(left) == {"name": "up", "id": 0x200, "mask": 0xFF00, "iif": "lo"}
    assert held(host) == (UP,)
    assert absent(host, "up").changed
    assert not host.nft.tables
    assert not absent(host, "up").changed


def test_check_mode_predicts_the_result(host):
    present(host, OTHER)
    foretold = present(host, ONE, check=True)
    assert held(host) == (UP,)
    assert present(host, ONE) == foretold
    assert single_mark.dump(foretold.after.marks[1])["mac"] == ["02:00:00:00:00:0b"]


@pytest.mark.parametrize(("options", "sentence"), [
    ({"name": "lb9"}, "id: already used by mark lb1 of owner packet_mark"),
    ({"name": "lb9", "id": "0x500"}, "mac: already used by mark lb1 of owner packet_mark"),
    ({"name": "lb9", "mask": "0xfff", "id": "1", "mac": ["02:00:00:00:00:99"]}, "mask: 0xfff differs from 0xff00 of"),
    ({"name": "up2", "id": "0x500", "mac": None, "iif": "lo"}, "iif: already used by mark up"),
    ({"name": "up2", "id": "0x500", "mac": None, "iif": "eth9"}, "iif: this host has no interface eth9"),
])  # fmt: skip
def test_a_mark_that_conflicts_with_another_one_is_refused(host, options, sentence):
    present(host, ONE)
    present(host, OTHER)
    with pytest.raises(errors.Refused, match=sentence):
        present(host, {**ONE, **options})
    assert held(host) == (UP, LB1)


def test_without_an_engine_the_package_is_named(host):
    host.nft.missing = True
    with pytest.raises(errors.MissingPackage, match="install the package nftables"):
        present(host, ONE)
    mark = single_mark.read(ONE)
    outcome = single_mark.ensure("lb1", mark, host.engine, owner="packet_mark", check=True)
    assert outcome.changed
    assert "the owner is assumed to have no marks" in outcome.warnings[0]
    assert not absent(host, "lb1").changed


def test_a_mark_that_does_not_read_back_is_undone(host):
    present(host, OTHER)
    before = dict(host.nft.tables)

    def forget(argv, stdin=None):
        return Completed(0, "", "") if "lb1" in (stdin or "") else host.nft(argv, stdin)

    lossy = single_mark.Host(runner=forget, lock=host.engine.lock, sysctls=host.engine.sysctls)
    with pytest.raises(errors.ApplyError, match="after applying, the host still needs: replace the nft table of marks"):
        single_mark.ensure("lb1", LB1, lossy, owner="packet_mark")
    assert host.nft.tables == before
