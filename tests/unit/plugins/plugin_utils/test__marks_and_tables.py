# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._local_delivery import local_delivery
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._marks_and_tables import Numbers, read
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path import return_path

from .fleet_data import errors, fleet, hostvars

OTHERS = {"mark_mask": "0xff00", "table_base": 30000, "priority": "2000"}


def seen_from(host: str, numbers, **variables):
    return fleet(host, variables=hostvars(**{host: {"l4proxy_numbers": numbers, **variables}}))


def test_without_the_variable_the_defaults_apply_and_the_numbers_of_another_host_do_not_matter():
    assert read("b", None) == read("b", {}) == Numbers(0xFF, 20100, 1100)
    assert return_path(seen_from("a", OTHERS), "b") == return_path(fleet("b"), "b")


def test_the_numbers_of_a_backend_with_strategy_mark_or_address():
    document = return_path(seen_from("b", OTHERS), "b")
    assert [(mark["id"], mark["mask"]) for mark in document["marks"]] == [(11 << 8, 0xFF00)]
    rules = {(rule["priority"], rule["fwmark"], rule["fwmask"], rule.get("table")) for rule in document["rules"]}
    assert rules == {(2000, 11 << 8, 0xFF00, 30011), (2001, 11 << 8, 0xFF00, None)}
    assert {route["table"] for route in document["routes"]} == {30011}
    own = {"return_path_strategy": "address", "return_path_addresses": {"a": ["198.18.0.121", "2001:db8::121"]}}
    document = return_path(seen_from("b", OTHERS, **own), "b")
    assert {(rule["priority"], rule.get("table")) for rule in document["rules"]} == {(2000, 30311), (2001, None)}


@pytest.mark.parametrize("method", ["rules", "socket_mark"])
def test_the_numbers_of_a_proxy(method):
    document = local_delivery(seen_from("a", OTHERS), "a", method)
    assert {(rule["priority"], rule["table"]) for rule in document["rules"]} == {(2000, 30000)}
    assert {route["table"] for route in document["routes"]} == {30000}
    marks = [(mark["id"], mark["mask"]) for mark in document["marks"]]
    assert marks == ([] if method == "rules" else [(11 << 8, 0xFF00)])


@pytest.mark.parametrize(("mask", "largest"), [(0x7, 7), (0x700, 7), (0x80000000, 1)])
def test_an_id_that_does_not_fit_under_the_mask_is_refused(mask, largest):
    wanted = f"proxy a has id 11, but l4proxy_numbers.mark_mask {mask:#x} has room for ids 1 to {largest}; "
    for derive, host, options in ((return_path, "b", ()), (local_delivery, "a", ("socket_mark",))):
        (found,) = errors(derive, seen_from(host, {"mark_mask": mask}), host, *options)
        assert found.startswith(wanted)


FAULTS = [
    ([0xFF], "l4proxy_numbers of b: expected a dictionary with mark_mask, table_base, priority, found [255]"),
    ({"mask": 1}, "l4proxy_numbers of b: 'mask' is not a known key; use mark_mask, table_base, priority"),
    ({"mark_mask": "ff"}, "l4proxy_numbers of b: mark_mask 'ff' is not a whole number"),
    ({"priority": True}, "l4proxy_numbers of b: priority True is not a whole number"),
    *(({"mark_mask": mask}, f"l4proxy_numbers of b: mark_mask {mask:#x} is not one run of bits")
      for mask in (0, 0x5, 0xFF00FF, 0x1FF << 32, -1)),
    *(({"table_base": base}, f"l4proxy_numbers of b: table_base {base} uses the routing tables {base} to {base + 855}")
      for base in (0, 1, 255, 2**32 - 555)),
    *(({"priority": value}, f"l4proxy_numbers of b: priority {value} leaves no room for a lookup rule and its guard")
      for value in (0, 32765, 32766)),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), FAULTS, ids=[str(value) for value, _expected in FAULTS])
def test_a_bad_value_is_refused(value, expected):
    (found,) = errors(return_path, seen_from("b", value), "b")
    assert found.startswith(expected)


def test_the_bounds_themselves_are_accepted_and_all_faults_reported_together():
    for value in ({"table_base": 256}, {"table_base": 2**32 - 856}, {"priority": 1}, {"priority": 32764}):
        assert return_path(seen_from("b", value), "b")["rules"], value
    assert len(errors(read, "b", {"mark_mask": 5, "table_base": 200, "priority": 0})) == 3
