# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path import return_path

from tests.unit.tables import rows

from .fleet_data import WEB, fleet, hostvars

UNREPLIED, STREAM = "net.netfilter.nf_conntrack_udp_timeout", "net.netfilter.nf_conntrack_udp_timeout_stream"


def dns(**options):
    return {"name": "dns", "protocol": "udp", "listen": ["0.0.0.0:53"], "backends": ["b:53"], **options}


def lines(**values):
    """``/proc/sys/NAME:VALUE`` as the role reads them, for the two timeouts."""
    names = {"unreplied": UNREPLIED, "stream": STREAM}
    return [f"/proc/sys/{names[key].replace('.', '/')}:{value}" for key, value in values.items()]


KNOWN = {"return_path": {"sysctls": [{"name": STREAM, "value": "605"}]}}
CASES = [
    ("no UDP service", [WEB], {}, {}),
    ("the default, 60 s, above one of the kernel's", [dns()], {}, {UNREPLIED: "65"}),
    ("below both", [dns(idle_timeout=10)], {}, {}),
    ("above both", [dns(idle_timeout=600.5)], {}, {UNREPLIED: "606", STREAM: "606"}),
    ("the longest counts", [dns(idle_timeout=10), dns(idle_timeout=95, name="sip")], {}, {UNREPLIED: "100"}),
    ("shorter than the kernel's on this host", [dns(idle_timeout=10)], {"settings": lines(stream=4)}, {STREAM: "15"}),
    ("longer on this host", [dns(idle_timeout=600)], {"settings": lines(stream=3600, unreplied=3600)}, {}),
    ("held by us, so the value says nothing", [dns(idle_timeout=600)],
     {"settings": lines(stream=605, unreplied=3600), "known": KNOWN}, {STREAM: "605"}),
    ("held by us, and no longer needed", [dns(idle_timeout=10)], {"settings": lines(stream=605), "known": KNOWN}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("services", "changes", "wanted"), **rows(CASES))
def test_timeouts_of_conntrack(services, changes, wanted):
    document = return_path(fleet("b", services, **changes), "b")
    assert {one["name"]: one["value"] for one in document["sysctls"] if "udp_timeout" in one["name"]} == wanted


def test_strategies_without_conntrack_need_none():
    own = {"a": ["198.18.0.121", "2001:db8::121"]}
    variables = hostvars(b={"return_path_strategy": "address", "return_path_addresses": own})
    document = return_path(fleet("b", [dns(idle_timeout=600)], variables), "b")
    assert not [one for one in document["sysctls"] if "netfilter" in one["name"]]
