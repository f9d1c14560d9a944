# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A document of services on a fake host: what the live table says, and that a run changes all or nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import ApplyError, MissingPackage
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.backend_states import States
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper import reconcile_pass
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import engine, needs

BACKENDS = [{"name": name, "address": f"198.18.0.{number}", "port": 8080} for name, number in (("b", 21), ("c", 22))]
WEB = {"name": "web", "family": "ipv4", "protocol": "tcp", "address": "198.18.0.100", "port": 80, "backends": BACKENDS}
OTHER = {**WEB, "name": "other", "port": 81, "backends": [{**BACKENDS[0], "port": 81}]}
BYPASS = {"family": "ipv4", "priority": 1099, "fwmark": 255, "fwmask": 255, "action": "lookup", "table": 254}
DOCUMENT = {"schema": 1, "owner": "kernel_datapath", "protocol": 204, "rules": [BYPASS], "services": [WEB, OTHER]}
DOCUMENT["forwarding"] = ["ipv4"]
MAX = "net/netfilter/nf_conntrack_max"


@pytest.fixture
def host(host, tmp_path):
    for name in ("net/ipv4/ip_forward", MAX):
        (tmp_path / "proc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc" / name).write_text("0\n" if name != MAX else "262144\n")
    return host


def apply(host, data=None, **options):
    return engine.reconcile(documents.load(data or DOCUMENT), host.engine, engine.Options(**options))


def test_a_change_of_states_is_written_and_is_no_change(host):
    assert apply(host).changed
    before = host.datapath.live
    host.engine = replace(host.engine, backend_states=lambda: States({"web": {"b": "down"}}))
    assert not apply(host, check=True).changed
    assert host.datapath.live == before
    assert not apply(host).changed
    assert host.datapath.live != before
    changed = host.datapath.live
    assert not apply(host).changed
    assert host.datapath.live is changed


def test_the_size_of_conntrack_is_known_only_when_the_table_has_loaded_it(host, tmp_path):
    (tmp_path / "proc" / MAX).unlink()
    write = host.datapath.write

    def loads(live, table):
        (tmp_path / "proc" / MAX).write_text("1000\n")
        return write(live, table)

    host.datapath.write = loads
    assert apply(host).changed
    assert not apply(host).changed


@pytest.mark.parametrize("break_it", [
    lambda live: replace(live, chains={**live.chains, "forward": (live.chains["forward"][0], ())}),
    lambda live: replace(live, chains={**live.chains, "buckets_tcp-198.18.0.100-80": (None, ())}),
    lambda live: replace(live, disabled=True),
])  # fmt: skip
def test_a_table_that_somebody_has_changed_is_restored(host, break_it):
    apply(host)
    whole = host.datapath.live
    host.datapath.live = break_it(whole)
    assert apply(host).changes == ("restore the nft table of services",)
    assert host.datapath.live == whole


def test_a_drain_that_has_ended_is_no_change_for_a_document_that_still_lists_it(host, tmp_path):
    options = {"directory": str(tmp_path / "routing.d"), "now": 0}
    apply(host, **options)
    host.connections[needs.Forwarded] = 1
    begun = apply(host, {**DOCUMENT, "services": [WEB]}, drain=100, **options)
    assert begun.changes[0] == "forward open connections of 198.18.0.100:81/tcp to b"
    stored = {**DOCUMENT, "services": [WEB, {**OTHER, "retiring": True, "retire_at": 100}]}
    assert apply(host, stored, now=50).changes == ()
    assert apply(host, stored, now=200).changes == ("stop forwarding open connections of 198.18.0.100:81/tcp to b",)
    assert apply(host, stored, now=300).changes == ()


def test_a_failing_change_leaves_nothing(host, tmp_path, monkeypatch):
    before, hold = (host.snapshot(), host.datapath.live), host.engine.sysctls.hold

    def fails(owner, sysctl):
        if sysctl.name.endswith("ip_forward"):
            raise OSError(30, "Read-only file system")
        hold(owner, sysctl)

    monkeypatch.setattr(host.engine.sysctls, "hold", fails)
    with pytest.raises(ApplyError, match=r"could not set sysctl net.ipv4.ip_forward: 0 -> 1: .* were undone"):
        apply(host)
    assert (host.snapshot(), host.datapath.live.exists) == (before[0], False)


def test_the_keeper_follows_what_forwarding_needs(host, tmp_path):
    store = tmp_path / "routing.d"
    apply(host, directory=str(store))
    result = reconcile_pass.reconcile_all(reconcile_pass.Documents(str(store)), host.engine, now=1)
    assert (result.problems, result.changed, result.served is not None) == ([], False, True)
    assert {"l4proxy_datapath"} <= result.interest.nft_names
    assert result.interest.tables == frozenset(), "each route of table main would start a pass"
    assert not reconcile_pass.settings_differ(result, host.engine)
    (tmp_path / "proc/net/ipv4/ip_forward").write_text("0\n")
    assert reconcile_pass.settings_differ(result, host.engine)
    host.memory.write_text("{")
    assert reconcile_pass.settings_differ(result, host.engine)


def test_without_nft_nothing_is_changed(host):
    before = host.snapshot()
    host.nft.missing = True
    host.engine = replace(host.engine, runner=lambda argv, stdin=None: host.nft(argv, stdin))
    with pytest.raises(MissingPackage, match="services that the kernel forwards need the command nft: install"):
        apply(host)
    assert "install the package nftables" in apply(host, check=True).warnings[0]
    assert host.snapshot() == before
