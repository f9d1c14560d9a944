# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._kernel_datapath import kernel_datapath

from .fleet_data import BOTH, FAST, WEB, errors, fleet, hostvars


def test_a_service_is_one_object_for_each_address_with_the_normalised_values_of_the_config():
    options = {"balance": "source_hash", "on_down": "reset", "allow": ["10.0.0.0/8"], "log": "none"}
    service = {**FAST, **options, "limits": {"connections": 9, "rate_per_client": 0.5}, "proxies": ["a"]}
    document = kernel_datapath(fleet("a", [WEB, service]), "a")
    assert (document["owner"], document["protocol"]) == ("kernel_datapath", 204)
    ipv4, ipv6 = document["services"]
    assert ipv4 == {
        "name": "fast",
        "family": "ipv4",
        "protocol": "tcp",
        "address": "198.18.0.100",
        "port": 443,
        "balance": "source_hash",
        "backends": [
            {"name": "b", "address": "198.18.0.21", "port": 8443, "weight": 2, "tier": 0, "enabled": True},
            {"name": "c", "address": "198.18.0.22", "port": 8443, "weight": 1, "tier": 256, "enabled": True},
        ],
        "on_all_down": "refuse",
        "on_down": "reset",
        "allow": ["10.0.0.0/8"],
        "deny": [],
        "limits": {"connections": 9, "connections_per_client": 0, "rate_per_client": 0.5},
        "log": "none",
    }
    assert (ipv6["address"], ipv6["backends"][0]["address"]) == ("2001:db8::100", "2001:db8::21")
    disabled = {**FAST, "backends": [{"host": "b", "port": 8443, "enabled": False, "priority": 3}, "c:8443"]}
    first = kernel_datapath(fleet("a", [disabled]), "a")["services"][0]
    assert (first["balance"], first["backends"][0]["tier"], first["backends"][0]["enabled"]) == ("hash", 3, False)


def test_the_document_has_the_families_the_rule_before_local_delivery_and_what_conntrack_needs():
    variables = hostvars(a={"l4proxy_numbers": {"mark_mask": "0xff00", "priority": 2000}})
    document = kernel_datapath(fleet("a", [{**FAST, "listen": ["198.18.0.100:443"]}], variables), "a")
    assert document["forwarding"] == ["ipv4"]
    rule = {"family": "ipv4", "priority": 1999, "fwmark": 0xFF00, "fwmask": 0xFF00, "action": "lookup", "table": 254}
    assert document["rules"] == [rule]
    names = [f"net.netfilter.nf_conntrack_{name}" for name in ("tcp_loose", "tcp_be_liberal", "acct")]
    early = {"name": "net.ipv4.ip_early_demux", "value": "0"}
    of_log = ["net.netfilter.nf_conntrack_timestamp"]
    assert document["sysctls"] == [early, *({"name": name, "value": "1"} for name in names + of_log)]
    silent = kernel_datapath(fleet("a", [{**FAST, "log": "errors"}], variables), "a")
    assert [one["name"] for one in silent["sysctls"]] == [early["name"], *names]
    assert kernel_datapath(fleet("a", [FAST]), "a")["forwarding"] == ["ipv4", "ipv6"]


def test_without_a_kernel_service_there_is_no_document_or_an_empty_one_in_place_of_an_earlier_one():
    other = {**FAST, "proxies": ["a2"]}
    assert kernel_datapath(fleet("a", [WEB, other], **BOTH), "a") is None
    document = kernel_datapath(fleet("a", [WEB], known={"kernel_datapath": {"services": []}}), "a")
    assert document["owner"] == "kernel_datapath"
    assert not document["rules"] + document["sysctls"]
    assert "services" not in document


def test_both_proxies_have_the_same_services_except_for_addresses_of_their_own():
    first, second = (kernel_datapath(fleet(name, [FAST], **BOTH), name) for name in ("a", "a2"))
    assert first == second


def test_the_id_that_has_all_bits_of_the_mark_is_refused():
    (found,) = errors(kernel_datapath, fleet("a", [FAST], hostvars(a={"l4proxy_id": 255})), "a")
    assert found.startswith("proxy a has id 255, whose mark 0xff is that of replies which the kernel forwards; set a")
    assert kernel_datapath(fleet("a", [FAST], hostvars(a={"l4proxy_id": 254})), "a")
