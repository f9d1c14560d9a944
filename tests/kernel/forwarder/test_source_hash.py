# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""source_hash over TCP and UDP: the same backend on all workers and proxies and in nftables; bounded loads."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared import bucket_table, client_hash

from tests.kernel.forwarder.sessions import Session, each_once
from tests.support.forwarding import BACKENDS, Forwarder, make_config, make_service

PORT, BACKEND = 7905, 9000

pytestmark = each_once  # the key is the address alone


def document(lab, protocol, names=BACKENDS, port=PORT, workers=1, **options):
    service = make_service(lab, "web", port, BACKEND, names, protocol=protocol, balance="source_hash", **options)
    return make_config(service, workers=workers)


def test_source_hash_is_the_same_on_all_workers_and_proxies_and_after_a_restart(lab, ask, protocol, family):
    count = 60
    with Forwarder(lab, document(lab, protocol, workers=2)) as forwarder:
        first = ask.clients(count)
        assert set(first.values()) == set(BACKENDS)
        # From other ports, so that the kernel may select the other worker.
        assert ask.clients(count) == first
        # Another proxy: other processes, another id, another order of backends.
        other = document(lab, protocol, names=BACKENDS[::-1], port=PORT + 1)
        with Forwarder(lab, {**other, "proxy_id": 12}):
            assert ask.clients(count, PORT + 1) == first
        forwarder.ask("maintenance", backend="b")
        without = ask.clients(count)
        moved = {address for address, name in without.items() if name != first[address]}
        assert moved == {address for address, name in first.items() if name == "b"}, "nobody else's clients moved"
    with Forwarder(lab, document(lab, protocol)):
        assert ask.clients(count) == first


def watch_buckets(host, family, size):
    """Let nftables find the bucket of each client of the service."""
    ip, seed = {"ipv4": "ip", "ipv6": "ip6"}[family], client_hash.SEED
    ruleset = f"""
table inet buckets
delete table inet buckets
table inet buckets {{
  set found {{ type {family}_addr . mark; flags dynamic; size 65536; }}
  chain first {{
    type filter hook prerouting priority raw
    meta l4proto {{ tcp, udp }} th dport {PORT} meta mark set jhash {ip} saddr mod {size} seed {seed}
    meta l4proto {{ tcp, udp }} th dport {PORT} add @found {{ {ip} saddr . meta mark }} meta mark set 0
  }}
}}"""
    host.run(["nft", "-f", "-"], input=ruleset)


def buckets_in_nftables(host):
    """Return {client: bucket}."""
    found = json.loads(host.run(["nft", "-j", "list", "set", "inet", "buckets", "found"]).stdout)
    return dict(element["concat"] for element in found["nftables"][1]["set"]["elem"])


def test_maglev_is_even_and_the_same_in_nftables_and_on_all_proxies(lab, ask, protocol, family):
    """The addresses are always the same, and so are their shares."""
    count, few = 500, 150
    table = bucket_table.fill(BACKENDS, [1, 1, 1])
    maglev = {**document(lab, protocol, workers=2), "hash_table": "maglev"}
    watch_buckets(lab["a"], family, len(table))
    with Forwarder(lab, maglev) as forwarder:
        first = ask.clients(count)
        assert forwarder.status()["hash_table"] == "maglev"
        buckets = buckets_in_nftables(lab["a"])
        assert {client: BACKENDS[table[buckets[client]]] for client in first} == first
        assert all(share == pytest.approx(count / 3, rel=0.13) for share in Counter(first.values()).values())
        other = document(lab, protocol, names=BACKENDS[::-1], port=PORT + 1)
        with Forwarder(lab, {**other, "proxy_id": 12, "hash_table": "maglev"}):
            assert ask.clients(few, PORT + 1).items() <= first.items()
        with Forwarder(lab, {**other, "proxy_id": 12}):
            ring = ask.clients(few, PORT + 1)
            assert sum(ring[client] != first[client] for client in ring) > few / 2
        forwarder.ask("maintenance", backend="b")
        forwarder.ask("kill", service="web")  # or a UDP client that has the same port again would continue its session
        without = ask.clients(count)
        moved = {client for client, name in without.items() if name != first[client]}
        assert moved == {client for client, name in first.items() if name == "b"}
        assert all(share == pytest.approx(count / 2, rel=0.1) for share in Counter(without.values()).values())
        # Another table, in place: open sessions stay where they are.
        forwarder.ask("kill", service="web")
        open_now = [Session(lab, protocol, (getattr(lab["a"], family), PORT), client) for client in list(ring)[:20]]
        forwarder.ask("ready", backend="b")
        forwarder.configure({**maglev, "hash_table": "ring"})
        assert forwarder.reload().returncode == 0
        assert forwarder.status()["last_reload"]["in_place"]
        assert ask.clients(few) == ring
        for session in open_now:
            session.go_on()
            session.end()


def test_a_bounded_load_spreads_the_connections_of_one_client(lab, ask, protocol, family):
    favourite = None
    for options, most in (({}, 12), ({"hash_balance_factor": 150}, 6)):
        with Forwarder(lab, {**document(lab, protocol, **options), "hash_table": "maglev"}) as forwarder:
            ((name, number), *_others) = ask.many(12).most_common()
            assert number == most
            favourite = favourite or name
            (service,) = forwarder.status()["services"]
            found = {backend["name"]: backend["passed_over"] for backend in service["backends"]}
            assert found == {**dict.fromkeys(BACKENDS, 0), favourite: 12 - most}
            for session in ask.sessions:
                session.end()
