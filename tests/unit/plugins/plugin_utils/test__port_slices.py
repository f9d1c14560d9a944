# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._forwarder_config import forwarder_config
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._port_slices import FIRST, LAST, slice_of, source_ports

from .fleet_data import fleet, hostvars

IDS = [[11, 12], [11, 13], [1, 2, 3], [10, 20, 30, 40], [1, 255], list(range(1, 256)), list(range(5, 256, 16))]


@pytest.mark.parametrize("ids", IDS, ids=[f"{ids[0]}-{ids[-1]}, {len(ids)}" for ids in IDS])
def test_slices_share_no_port(ids):
    slices = sorted(slice_of(number, ids) for number in ids)
    assert slices[0][0] >= FIRST
    assert slices[-1][1] <= LAST
    assert all(one[1] < other[0] for one, other in zip(slices, slices[1:]))
    assert min(last - first for first, last in slices) >= 100


def test_a_slice_does_not_depend_on_the_order_of_proxies():
    assert slice_of(11, [11, 12]) == slice_of(11, [12, 11]) == slice_of(11, [11, 14])


def test_a_single_proxy_has_all_ports_and_both_of_two_have_a_slice_in_their_config():
    assert source_ports(fleet("a"), "a") is None
    assert "source_ports" not in forwarder_config(fleet("a"), "a", {})
    configs = [forwarder_config(fleet(name, proxies=["a", "a2"]), name, {}) for name in ("a", "a2")]
    slices = [(config["source_ports"]["first"], config["source_ports"]["last"]) for config in configs]
    assert slices == [(46884, 60999), (32768, 46883)]


def test_a_slice_stays_while_another_proxy_is_down():
    before = forwarder_config(fleet("a", proxies=["a", "a2"]), "a", {})
    variables = hostvars(a2={"ansible_facts": {}})
    after = fleet("a", variables=variables, proxies=["a", "a2"], known={"forwarder": before})
    assert forwarder_config(after, "a", {}) == before
