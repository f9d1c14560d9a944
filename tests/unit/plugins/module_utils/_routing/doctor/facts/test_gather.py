# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From a host to facts and on to findings; also on a new host without packages, and with facts that cannot be read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor import registry
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts import gather, packet_filters
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.documents import Document
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.kernel_service import KernelService
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import MissingPackage
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.runner import Completed

from ... import fakes
from .. import cases, fake_doctor


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    return fake_doctor.FakeDoctor(tmp_path, monkeypatch)


@pytest.fixture
def host(fresh):
    fresh.apply()
    return fresh


def test_the_facts_of_an_applied_document_have_no_problem_until_it_drifts_or_replies_are_redirected(host):
    facts = gather.gather(host.sources)
    assert facts.peers == (replace(cases.PEER, name="a", router=cases.ROUTER),)
    assert facts.replies == {cases.REPLY: cases.BY_PROXY}
    lookup = {"src": cases.B, "iif": None, "mark": 11, "ip_proto": 6, "sport": None}
    assert (cases.CLIENT, lookup) in host.asked
    assert cases.problems(facts) == []
    host.host.kernel.held_rules.pop()
    host.redirect("192.0.2.9")
    assert cases.problems(gather.gather(host.sources)) == ["fail redirected", "fail rules"]


def test_the_callers_clients_and_ports_are_used(host):
    facts = gather.gather(host.sources, None, {"ipv4": "192.0.2.7"}, [("tcp", 80)])
    assert [reply.dst for reply in facts.replies] == ["192.0.2.7"]
    assert facts.clients["ipv6"] == cases.CLIENTS["ipv6"]
    assert (facts.clients_given, facts.ports) == (frozenset({"ipv4"}), (("tcp", 80),))


def test_a_document_that_cannot_be_applied_yet_is_reported_as_waiting(host):
    host.host.kernel.near.clear()
    assert "fail waiting" in cases.problems(gather.gather(host.sources))


def test_a_document_that_is_not_applied_gets_only_preflight_checks(fresh):
    facts = gather.gather(fresh.sources, documents.load(fakes.RETURN_PATH))
    assert not facts.applied
    assert [peer.via for peer in facts.peers] == [cases.A]
    assert facts.drift == ()
    assert cases.problems(facts) == []
    assert "lookup" not in [finding.id for finding in registry.examine(facts)]


def test_a_document_that_is_not_applied_is_seen_beside_the_stored_services_of_the_kernel(host):
    services = {"schema": 1, "owner": "kernel_datapath", "protocol": 204, "forwarding": ["ipv4"]}
    bypass = {"family": "ipv4", "priority": 1099, "fwmark": 255, "fwmask": 255, "action": "lookup", "table": 254}
    server = {"name": "b", "address": cases.B, "port": 80}
    service = {"name": "web", "family": "ipv4", "protocol": "tcp", "address": "198.18.0.100", "port": 80}
    services |= {"rules": [bypass], "services": [{**service, "backends": [server]}]}
    (host.stored / "kernel_datapath.json").write_text(json.dumps(services), encoding="utf-8")
    for document, expected in (
        (fakes.RETURN_PATH, ["return_path", "kernel_datapath"]),
        (services, ["kernel_datapath"]),
    ):
        facts = gather.gather(host.sources, documents.load(document))
        assert [one.owner for one in facts.documents] == expected
        assert not facts.applied


def test_missing_packages_are_no_problem_before_the_document_is_applied(fresh):
    fresh.host.no_pyroute2 = True
    fresh.outputs["nft -j list ruleset"] = None
    facts = gather.gather(fresh.sources, documents.load(fakes.RETURN_PATH))
    assert set(facts.missing) == {"nftables", "python3-pyroute2"}
    assert (facts.rules, facts.routes, facts.ruleset) == (None, None, None)
    assert [peer.dev for peer in facts.peers] == ["eth0"], "route lookups need no package"
    assert cases.problems(facts) == []


def test_missing_packages_are_a_failure_once_the_document_is_applied_and_a_missing_document_is_one(fresh):
    assert cases.problems(gather.gather(fresh.sources)) == ["fail documents"]
    fresh.apply()
    fresh.host.no_pyroute2 = True
    assert cases.problems(gather.gather(fresh.sources)) == ["fail packages"]


def chain(**values) -> str:
    """nft's listing of the chain INPUT of iptables, with these values in place of its own."""
    base = {"family": "ip", "table": "filter", "name": "INPUT", "hook": "input", "prio": 0}
    return json.dumps({"nftables": [{"chain": {**base, **values}}]})


def test_iptables_is_listed_only_if_it_may_have_rules(host):
    host.outputs["iptables-save"] = "*filter\n:INPUT DROP [0:0]\nCOMMIT\n"
    assert gather.gather(host.sources).ruleset.chains == {}
    host.outputs["nft -j list ruleset"] = chain(policy="drop")
    assert list(gather.gather(host.sources).ruleset.chains) == [("iptables filter", "INPUT")]


def test_our_own_nft_table_and_iptables_chains_are_not_packet_filters(host):
    ours = {"family": "inet", "table": "l4proxy_return_path", "name": "prerouting", "hook": "prerouting"}
    host.outputs["nft -j list ruleset"] = chain(**ours, prio=-150, policy="accept")
    facts = gather.gather(host.sources)
    assert (dict(facts.ruleset.chains), facts.restores_forwarded) == ({}, True)
    output = {"table": "mangle", "name": "OUTPUT", "hook": "output"}
    host.outputs["nft -j list ruleset"] = chain(**output, prio=-150, policy="accept")
    ours = [":L4PROXY_RETURN_PATH_PRE - [0:0]", "-A L4PROXY_RETURN_PATH_PRE -j MARK --set-xmark 0xb/0xff"]
    jump = "-A OUTPUT -j L4PROXY_RETURN_PATH_PRE"
    host.outputs["iptables-save"] = "\n".join(["*mangle", ":OUTPUT ACCEPT [0:0]", *ours, jump, "COMMIT"])
    facts = gather.gather(host.sources)
    assert list(facts.ruleset.chains) == [("iptables mangle", "OUTPUT")]
    assert facts.restores_forwarded
    assert "mark_clobbered" not in " ".join(cases.problems(facts))


def test_the_table_of_kernel_services_is_not_listed_because_it_has_thousands_of_buckets(host):
    document = Document("kernel_datapath", 204, services=(KernelService("web", "ipv4", "tcp", cases.A, 80, ()),))
    chains = [{"chain": {"family": "inet", "table": name}} for name in ("l4proxy_datapath", "filter", "gone")]
    host.outputs["nft -j list chains"] = json.dumps({"nftables": chains})
    host.outputs["nft -j list table inet filter"] = chain(family="inet")
    host.outputs["nft -j list table inet gone"] = Completed(1, "", "Error: No such file or directory")
    host.outputs["nft -j list table inet l4proxy_datapath"] = RuntimeError("it is listed")
    found = packet_filters.read(host.sources.host.runner, host.sources.proc, [document])
    assert list(found["ruleset"].chains) == [("inet filter", "INPUT")]


def test_an_error_while_comparing_a_document_with_the_host_is_the_reason_it_is_blocked(host, monkeypatch):

    def refuse(*_arguments):
        raise MissingPackage("nftables", "marks need the command nft")

    monkeypatch.setattr(gather.engine, "compare", refuse)
    assert gather.gather(host.sources).drift[0].blocked == ("marks need the command nft: install the package nftables",)


NFT, SAVE = "nft -j list ruleset", "iptables-save"

IN_IPTABLES = chain()

# (output of each command, or an exception; the fact that cannot be read; words of the reason)
UNREADABLE = [
    ({NFT: "nonsense"}, "the packet filters", "JSONDecodeError"),
    ({NFT: '{"nftables": [{"rule": {}}, {"chain": 7}]}'}, "the packet filters", "TypeError"),
    ({NFT: "[]"}, "the packet filters", "did not print a JSON object"),
    ({NFT: Completed(124, "", "nft did not end within 30 s")}, "the packet filters", "nft did not end within 30 s"),
    ({NFT: Completed(1, "", "Operation not permitted")}, "the packet filters", "Operation not permitted"),
    ({NFT: IN_IPTABLES, SAVE: "*nat\n-A 'x\n"}, "the packet filters", "No closing quotation"),
    ({NFT: IN_IPTABLES, SAVE: Completed(1, "", "no lock")}, "the packet filters",
     "`iptables-save` failed with status 1: no lock"),
    ({"ip -j -4": "{"}, "the cache of redirects", "JSONDecodeError"),
    ({"ip -j -4": "[7]"}, "the cache of redirects", "AttributeError"),
    ({"ip -j -4": Completed(255, "", "")}, "the cache of redirects", "failed with status 255: no message"),
    ({"ip -j -4": PermissionError(13, "Permission denied")}, "the cache of redirects", "Permission denied"),
    ({"rules": ValueError("new attribute")}, "the list of rules", "ValueError: new attribute"),
    ({"neighbour": OSError(5, "Input/output error")}, "the proxies", "Input/output error"),
]  # fmt: skip


@pytest.mark.parametrize(("outputs", "name", "reason"), UNREADABLE)
@pytest.mark.parametrize("applied", [True, False])
def test_a_fact_that_cannot_be_read_is_reported_and_other_checks_run(host, monkeypatch, outputs, name, reason, applied):
    for source, output in outputs.items():
        if hasattr(host.host.kernel, source):
            monkeypatch.setattr(host.host.kernel, source, fake_doctor.raising(output))
        else:
            host.outputs[source] = output
    facts = gather.gather(host.sources, None if applied else documents.load(fakes.RETURN_PATH))
    assert reason in facts.unread[name]
    # Comparing the host with a document reads the same fact.
    assert set(facts.unread) <= {name, "what differs from the documents"}
    findings = [finding for finding in registry.examine(facts) if finding.status in ("fail", "warn")]
    assert {finding.id for finding in findings} <= {"unread", "waiting"}
    assert ("unread", name) in [(finding.id, finding.subject) for finding in findings]


def test_a_systemctl_that_times_out_is_reported(host, tmp_path):
    host.outputs["systemctl show"] = Completed(124, "", "systemctl did not end within 30 s")
    facts = gather.gather(replace(host.sources, systemd=str(tmp_path)))
    assert "did not end within 30 s" in facts.unread["the list of units"]
    assert cases.problems(facts) == ["warn unread"]


@pytest.mark.parametrize(("file", "text", "name"), [
    ("thread-self/net/tcp", b"sl local_address\nnonsense\n", "the list of sockets"),
    ("sys/net/netfilter/nf_conntrack_count", b"many\n", "the size of the conntrack table"),
    ("thread-self/net/tcp", b"\xff\xfe", "the list of sockets"),
])  # fmt: skip
def test_an_invalid_file_is_reported_and_other_checks_run(host, tmp_path, file, text, name):
    for written in ("sys/net/netfilter/nf_conntrack_max", file):
        path = tmp_path / "proc" / written
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    facts = gather.gather(replace(host.sources, proc=str(tmp_path / "proc")))
    assert name in facts.unread
    assert set(cases.problems(facts)) == {"warn unread"}


def test_tables_that_the_kernel_does_not_support_are_empty(host):
    host.outputs[NFT] = Completed(1, "", "Error: cache initialization failed: Protocol not supported")
    facts = gather.gather(host.sources)
    assert (facts.ruleset.chains, facts.unread) == ({}, {})
    host.outputs[NFT] = IN_IPTABLES
    host.outputs[SAVE] = "*filter\n:INPUT DROP [0:0]\nCOMMIT\n"
    host.outputs["ip6tables-save"] = Completed(1, "", "Address family not supported by protocol")
    facts = gather.gather(host.sources)
    assert (list(facts.ruleset.chains), facts.unread) == ([("iptables filter", "INPUT")], {})


@pytest.mark.parametrize("command", ["iptables-legacy", "iptables"])
def test_legacy_tables_are_listed_by_the_command_that_is_installed(host, tmp_path, command):
    names = tmp_path / "proc" / "thread-self" / "net" / "ip_tables_names"
    names.parent.mkdir(parents=True)
    names.write_text("nat\n")
    host.outputs[f"{command}-save"] = "*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n"
    facts = gather.gather(replace(host.sources, proc=str(tmp_path / "proc")))
    assert list(facts.ruleset.chains) == [(f"{command} nat", "POSTROUTING")]
