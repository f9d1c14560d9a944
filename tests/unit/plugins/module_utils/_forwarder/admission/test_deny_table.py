# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import ipaddress
import os
import random

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admission import deny_table
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admission.deny_table import (
    FOREVER,
    Denied,
    Table,
)

TEST_NETWORKS = [
    ("192.0.2.7", "192.0.2.7"),
    ("192.0.2.0/24", "192.0.2.0/24"),
    ("2001:DB8::/32", "2001:db8::/32"),
    ("2001:db8::1", "2001:db8::1"),
    ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
    ("::ffff:192.0.2.7", "192.0.2.7"),
    ("::/64", "::/64"),
]


@pytest.mark.parametrize(("text", "shown"), TEST_NETWORKS)
def test_a_network_is_read(text, shown):
    assert deny_table.show(*deny_table.parse(text)) == shown


TEST_REFUSED = [
    *(
        (text, "is neither an address nor a network")
        for text in ("", "/", "1.2.3", "01.2.3.4", "fe80::1%eth0", "1.2.3.4/x")
    ),
    *((text, "has no prefix length") for text in ("1.2.3.4/33", "1.2.3.4/-1", "1.2.3.4/+8", "::/129", "1.2.3.4/ 8")),
    ("1.2.3.4/\u0668", "has no prefix length"),
    ("192.0.2.1/24", "has host bits set; 192.0.2.0/24 has not"),
    ("2001:db8::1/64", "has host bits set; 2001:db8::/64 has not"),
    *((text, "is every address") for text in ("0.0.0.0/0", "::/0", "::ffff:0.0.0.0/96")),
]


@pytest.mark.parametrize(("text", "reason"), TEST_REFUSED)
def test_a_wrong_network_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        deny_table.parse(text)


def table(scopes):
    memory = os.memfd_create("test")
    deny_table.write(scopes, memory)
    return Table(memory)


@pytest.mark.parametrize(("family", "base"), [("ipv4", 10 << 24), ("ipv6", 0x2001 << 112)])
def test_the_latest_end_counts_wherever_networks_overlap(family, base):
    """Random networks, many within each other, compared with a look at each of them."""
    bits = deny_table.BITS[family]
    halves = (0, 0) if bits == 32 else (0, 3)  # several /64
    for seed in range(60):
        chance = random.Random(seed)

        def address(chance=chance):
            return base | chance.randint(*halves) << 64 | chance.randrange(1 << 9)

        networks, keys = [], []
        for _network in range(chance.randrange(40)):
            length = bits - chance.choice([0, 0, 1, 3, 8, *((64, 62) if bits == 128 else ())])
            first, end = address() >> bits - length << bits - length, chance.choice([FOREVER, 100, 200])
            networks.append((first, first | (1 << bits - length) - 1, end))
            keys.append(deny_table.key(first, length, end))
        made = table({"": {family: keys}})
        found = made.scopes.get(("", family))
        assert bool(found) == bool(networks)
        if found:
            spans = list(found)
            assert all(before[1] < after[0] for before, after in zip(spans, spans[1:]))
            for one in [address() for _try in range(100)] + [base - 1, base + (1 << 80)] * (bits == 128):
                expected = max([end for first, last, end in networks if first <= one <= last], default=0)
                halves_of = (one,) if bits == 32 else (one >> 64, one & (1 << 64) - 1)
                assert found.end_of(*halves_of) == expected, (seed, ipaddress.ip_address(one))
        made.close()
        made.unmap()


def test_a_client_is_denied_by_its_service_until_the_end_unless_it_is_protected(monkeypatch):
    monkeypatch.setattr(deny_table.time, "time", lambda: 1000.0)
    everywhere, web = (
        {"ipv4": [], "ipv6": []},
        {"ipv4": [], "ipv6": []},
    )
    for scope, text, end in (
        (everywhere, "192.0.2.0/24", FOREVER),
        (everywhere, "2001:db8::/64", 1001),
        (everywhere, "198.51.100.1", 1000),
        (web, "198.51.100.2", FOREVER),
    ):
        family, first, length = deny_table.parse(text)
        scope[family].append(deny_table.key(first, length, end))
    made = table({"": everywhere, "web": web})
    clients = ("192.0.2.7", "::ffff:192.0.2.7", "192.0.2.9", "2001:db8::7%eth0", "198.51.100.1", "198.51.100.2")
    answers = {}
    for service in ("web", "mail"):
        denied = Denied(service)
        denied.use([made], lambda address: address == "192.0.2.9")
        answers[service] = [denied.refusal(client) is not None for client in clients]
    assert answers == {
        "web": [True, True, False, True, False, True],
        "mail": [True, True, False, True, False, False],
    }
