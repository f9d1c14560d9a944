# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What follows from services and states. tests/kernel/datapath tests what the table does."""

from __future__ import annotations

import dataclasses

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.datapath import counters
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.datapath.model import Live, transaction
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.datapath.render import render
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.kernel_service import (
    KernelService,
    Server,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.backend_states import States

WEB = KernelService(
    "web",
    "ipv6",
    "tcp",
    "2001:db8::100",
    80,
    tuple(Server(name, f"2001:db8::2{number}", 8080) for number, name in enumerate("bcd")),
)


def rules(table, chain):
    return transaction(Live(), dataclasses.replace(table, chains={chain: table.chains[chain]}))


def changed(before, after):
    names = before.chains.keys() | after.chains.keys()
    return {name for name in names if digests(before, name) != digests(after, name)}


def digests(table, name):
    return table.chains[name].digests if name in table.chains else None


def test_without_services_there_is_no_table():
    assert render([]).chains == {}


@pytest.mark.parametrize("states", [{"c": "down"}, {"c": "out", "d": "down"}, dict.fromkeys("bcd", "down")])
def test_a_change_of_state_changes_one_chain(states):
    before, after = (render([WEB], States({"web": said})) for said in ({}, states))
    assert changed(before, after) == {"buckets_tcp-2001_db8__100-80"}
    assert (before.counters, before.sets) == (after.counters, after.sets)


def test_a_service_that_is_handed_over_changes_one_chain():
    assert changed(render([WEB]), render([WEB], States({"web": {}}))) == {"sockets_tcp-2001_db8__100-80"}


def test_names_of_backends_never_share_a_chain_or_a_counter():
    names = ("b:80", "b_80", "b-80", "b.80")
    servers = [Server(name, f"2001:db8::2{number}", 8080) for number, name in enumerate(names)]
    one, all_ = (render([dataclasses.replace(WEB, servers=tuple(some))]) for some in (servers[:1], servers))
    assert len(all_.chains) == len(one.chains) + 3
    assert len(all_.counters) == len(one.counters) + 9


def test_the_order_of_backends_does_not_matter():
    other = dataclasses.replace(WEB, servers=WEB.servers[::-1])
    assert digests(render([WEB]), "buckets_tcp-2001_db8__100-80") == digests(
        render([other]), "buckets_tcp-2001_db8__100-80"
    )


@pytest.mark.parametrize(
    ("rate", "limit"),
    [(20, "20/second burst 20"), (2.5, "150/minute burst 2"), (0.001, "86/day burst 1"), (1 / 3600, "1/hour burst 1")],
)
def test_the_rate_of_a_client_in_whole_numbers(rate, limit):
    table = render([dataclasses.replace(WEB, rate_per_client=rate)])
    assert f"limit rate over {limit} packets" in rules(table, "service_tcp-2001_db8__100-80")


def test_a_retiring_service_only_keeps_what_its_connections_need():
    live = KernelService("web", "ipv6", "tcp", "2001:db8::100", 81, WEB.servers[:1])
    table = render([live, dataclasses.replace(WEB, retiring=True)])
    assert "2001:db8::100 . tcp . 80 " not in rules(table, "dispatch")
    assert "2001:db8::100 . 80 " not in rules(table, "syn")
    reverse = rules(table, "reverse")
    assert "2001:db8::20 . tcp . 8080 : 2001:db8::100 . 81" in reverse, "what both have is the live one's"
    assert "2001:db8::21 . tcp . 8080 : 2001:db8::100 . 80" in reverse


def test_other_marks_than_the_default():
    table = render([WEB], mark=0x7F0000, mask=0x7F0000)
    assert "ct mark & 0x7f0000 == 0x7f0000 meta mark set meta mark & 0xff80ffff | 0x7f0000" in rules(table, "bypass")


def test_counts_are_summed_by_service_and_backend():
    other = dataclasses.replace(WEB, protocol="udp")
    counts = {f"{kind}_tcp-2001_db8__100-80_b": (5, 500) for kind in ("new", "in", "out")}
    counts |= {"in_udp-2001_db8__100-80_b": (1, 60), "denied_udp-2001_db8__100-80": (3, 100), "strangers_ipv4": (2, 9)}
    found = counters.by_service([WEB, other], counts)["web"]
    expected = {"connections": 5, "bytes_in": 560, "bytes_out": 500, "packets_in": 6, "packets_out": 5}
    assert found["backends"]["b"] == expected
    assert found["refused"] == {"denied": 3, "limited": 0, "no_backend": 0, "flood": 0}
    assert counters.dropped(counts) == {"strangers_ipv4": 2}
