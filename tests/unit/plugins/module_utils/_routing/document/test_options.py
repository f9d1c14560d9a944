# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options in the syntax of ip(8), read as rules and routes. Most refusals are tested in tests/kernel."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import options
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Route, Rule
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import DocumentError

RULES = [
    ({"from": "198.18.0.121", "table": "100"}, Rule("ipv4", 9, table=100, src="198.18.0.121")),
    ({"to": "2001:db8::/64", "table": "main"}, Rule("ipv6", 9, table=254, dst="2001:db8::/64")),
    ({"family": "ipv6", "table": "local"}, Rule("ipv6", 9, table=255)),
    ({"family": "ipv4", "from": "default", "iif": "lo", "table": "9"}, Rule("ipv4", 9, table=9, iif="lo")),
    ({"family": "ipv4", "fwmark": "0x1/0xff", "table": "9"}, Rule("ipv4", 9, table=9, fwmark=1, fwmask=255)),
    ({"family": "ipv4", "fwmark": "1", "fwmask": "255", "table": "9"}, Rule("ipv4", 9, table=9, fwmark=1, fwmask=255)),
    ({"family": "ipv4", "ipproto": "132", "action": "blackhole"}, Rule("ipv4", 9, action="blackhole", ip_proto=132)),
    ({"family": "ipv4", "ipproto": "udp", "dport": "53", "table": "9"},
     Rule("ipv4", 9, table=9, ip_proto=17, dport=(53, 53))),
    ({"family": "ipv4", "uidrange": "5-9", "oif": "eth0", "action": "prohibit"},
     Rule("ipv4", 9, action="prohibit", uid_range=(5, 9), oif="eth0")),
]  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), RULES)
def test_options_are_read_as_a_rule(given, expected):
    assert options.rule({"priority": 9, "action": "lookup", "sport": None, **given}) == expected


def test_an_absent_rule_is_identified_by_its_key():
    found = options.rule({"priority": 9, "from": "198.18.0.121", "action": "prohibit", "table": "9"}, present=False)
    assert found.key == Rule("ipv4", 9, table=1, src="198.18.0.121").key
    assert options.rule({"priority": 9, "family": "ipv4"}, present=False).key == Rule("ipv4", 9, table=1).key


@pytest.mark.parametrize(("given", "expected"), [
    ({"dst": "default", "via": "198.18.0.1", "table": "main"}, Route("ipv4", 254, via="198.18.0.1")),
    ({"dst": "2001:db8:5::/48", "dev": "eth0", "table": "9"}, Route("ipv6", 9, "2001:db8:5::/48", dev="eth0")),
    ({"dst": "default", "family": "ipv4", "table": "9", "type": "local"}, Route("ipv4", 9, type="local")),
    ({"dst": "10.0.0.0/8", "table": "9", "via": "10.9.9.9", "dev": "eth0", "onlink": True, "mtu": 1400, "metric": 5},
     Route("ipv4", 9, "10.0.0.0/8", via="10.9.9.9", dev="eth0", onlink=True, mtu=1400, metric=5)),
])  # fmt: skip
def test_options_are_read_as_a_route(given, expected):
    assert options.route({"type": "unicast", "onlink": False, "src": None, **given}) == expected


def test_an_absent_route_is_identified_by_its_key():
    given = {"dst": "default", "via": "2001:db8::1", "table": "9", "type": "unicast", "mtu": 1400, "dev": "eth0"}
    assert options.route(given, present=False).key == Route("ipv6", 9, via="2001:db8::1").key


def test_all_errors_are_reported_at_once():
    with pytest.raises(DocumentError) as caught:
        options.rule({"priority": 0, "from": "198.18.0.1/8", "ipproto": "x", "action": "lookup", "table": "9"})
    assert [error.split(":")[0] for error in caught.value.errors] == ["priority", "from", "ipproto"]
    for given in ("b", "198.18.0.300"):
        with pytest.raises(DocumentError, match=r"from: .* does not appear to be"):
            options.rule({"priority": 9, "from": given, "action": "lookup", "table": "9"})


def test_protocols_of_single_objects_are_accepted_and_reserved_and_invalid_ones_refused():
    assert [options.protocol(number) for number in (1, 3, 203, 255)] == [1, 3, 203, 255]
    for number in (-1, 0, 2, 201, 202, 256):
        with pytest.raises(DocumentError, match=f"^protocol: {number} is "):
            options.protocol(number)
