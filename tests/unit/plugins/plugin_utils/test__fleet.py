# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from tests.unit.plugins.plugin_utils.fleet_data import errors, fleet


def test_a_host_outside_the_group_of_backends():
    found = errors(lambda: fleet("a", backends=["b", "c"]))
    assert found == [
        "l4proxy_services[0].backends[2].host: 'd' is not in the group of backends, so its return path would never be "
        "set; add it to the group, or give its address instead of its name"
    ]


def test_empty_group_of_backends():
    assert errors(lambda: fleet("a", backends=[]))[0].startswith("the group of backends has no hosts")


def test_peers_are_both_ends_of_what_is_configured():
    assert fleet("b", proxies=["a", "a2"]).peers(["b"]) == ["b", "a", "a2"]
    assert fleet("a").peers(["a"]) == ["a", "b", "c", "d"]
