# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From a host to facts, and on to findings; on a fresh host, with less."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor import registry
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts import gather
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import MissingPackage
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.runner import Completed
from ansible_collections.trueip.l4proxy.tests.unit.plugins.module_utils._routing import fakes
from ansible_collections.trueip.l4proxy.tests.unit.plugins.module_utils._routing.doctor import cases, fake_doctor


@pytest.fixture
def host(tmp_path, monkeypatch):
    return fake_doctor.FakeDoctor(tmp_path, monkeypatch)


def test_an_applied_document(host):
    host.apply()
    facts = gather.look(host.sources)
    assert facts.peers == (replace(cases.PEER, name="a", router=cases.ROUTER),)
    assert facts.replies == {cases.REPLY: cases.BY_PROXY}
    question = {"src": cases.B, "iif": None, "mark": 11, "ip_proto": 6, "sport": None}
    assert (cases.CLIENT, question) in host.asked
    assert cases.complaints(facts) == []


def test_clients_and_ports_are_those_of_the_caller(host):
    host.apply()
    facts = gather.look(host.sources, None, {"ipv4": "192.0.2.7"}, [("tcp", 80)])
    assert [reply.dst for reply in facts.replies] == ["192.0.2.7"]
    assert facts.clients["ipv6"] == cases.CLIENTS["ipv6"]
    assert (facts.clients_given, facts.ports) == (frozenset({"ipv4"}), (("tcp", 80),))


def test_drift_and_redirects(host):
    host.apply()
    host.host.kernel.held_rules.pop()
    host.redirect("192.0.2.9")
    assert cases.complaints(gather.look(host.sources)) == [("fail", "redirected"), ("fail", "rules")]


def test_a_document_that_waits(host):
    host.apply()
    host.host.kernel.near.clear()
    assert ("fail", "waiting") in cases.complaints(gather.look(host.sources))


def test_a_document_that_is_still_to_be_applied(host):
    facts = gather.look(host.sources, documents.load(fakes.RETURN_PATH))
    assert not facts.applied
    assert [peer.via for peer in facts.peers] == [cases.A]
    assert facts.drift == ()
    assert cases.complaints(facts) == []
    assert "lookup" not in [one.id for one in registry.examine(facts)]


def test_a_fresh_host_has_no_packages(host):
    host.host.no_pyroute2 = True
    host.outputs["nft -j list ruleset"] = None
    facts = gather.look(host.sources, documents.load(fakes.RETURN_PATH))
    assert set(facts.missing) == {"nftables", "python3-pyroute2"}
    assert (facts.rules, facts.routes, facts.ruleset) == (None, None, None)
    assert [peer.dev for peer in facts.peers] == ["eth0"], "the kernel answers single questions without any package"
    assert cases.complaints(facts) == []


def test_packages_that_are_missing_later_are_a_fault(host):
    host.apply()
    host.host.no_pyroute2 = True
    assert cases.complaints(gather.look(host.sources)) == [("fail", "packages")]


def test_iptables_is_asked_only_where_it_may_have_rules(host):
    host.apply()
    host.outputs["iptables-save"] = "*filter\n:INPUT DROP [0:0]\nCOMMIT\n"
    assert gather.look(host.sources).ruleset.chains == {}
    chain = {"family": "ip", "table": "filter", "name": "INPUT", "hook": "input", "prio": 0, "policy": "drop"}
    host.outputs["nft -j list ruleset"] = json.dumps({"nftables": [{"chain": chain}]})
    assert list(gather.look(host.sources).ruleset.chains) == [("iptables filter", "INPUT")]


def test_our_own_table_is_no_foreign_filter(host):
    host.apply()
    place = {"family": "inet", "table": "l4proxy_return_path"}
    chain = {**place, "name": "prerouting", "hook": "prerouting", "prio": -150, "policy": "accept"}
    host.outputs["nft -j list ruleset"] = json.dumps({"nftables": [{"chain": chain}]})
    facts = gather.look(host.sources)
    assert (dict(facts.ruleset.chains), facts.restores_forwarded) == ({}, True)


def test_our_own_chains_in_iptables_are_no_foreign_filter(host):
    host.apply()
    chain = {"family": "ip", "table": "mangle", "name": "OUTPUT", "hook": "output", "prio": -150, "policy": "accept"}
    host.outputs["nft -j list ruleset"] = json.dumps({"nftables": [{"chain": chain}]})
    ours = [":L4PROXY_RETURN_PATH_PRE - [0:0]", "-A L4PROXY_RETURN_PATH_PRE -j MARK --set-xmark 0xb/0xff"]
    jump = "-A OUTPUT -j L4PROXY_RETURN_PATH_PRE"
    host.outputs["iptables-save"] = "\n".join(["*mangle", ":OUTPUT ACCEPT [0:0]", *ours, jump, "COMMIT"])
    facts = gather.look(host.sources)
    assert list(facts.ruleset.chains) == [("iptables mangle", "OUTPUT")]
    assert facts.restores_forwarded
    assert "mark_clobbered" not in [check for _status, check in cases.complaints(facts)]


def test_a_host_without_documents(host):
    assert cases.complaints(gather.look(host.sources)) == [("fail", "documents")]


def test_what_cannot_be_said_of_a_document_is_a_sentence(host, monkeypatch):
    host.apply()

    def refuse(*_arguments):
        raise MissingPackage("nftables", "marks need the command nft")

    monkeypatch.setattr(gather.engine_gather, "view", refuse)
    assert gather.look(host.sources).drift[0].blocked == ("marks need the command nft: install the package nftables",)


NFT, SAVE = "nft -j list ruleset", "iptables-save"
IN_IPTABLES = json.dumps(
    {"nftables": [{"chain": {"family": "ip", "table": "filter", "name": "INPUT", "hook": "input", "prio": 0}}]}
)
# (what each command does, the fact that is left out, words of the reason)
NONSENSE = [
    ({NFT: "nonsense"}, "the packet filters", "JSONDecodeError"),
    ({NFT: '{"nftables": [{"rule": {}}, {"chain": 7}]}'}, "the packet filters", "TypeError"),
    ({NFT: "[]"}, "the packet filters", "printed no object"),
    ({NFT: Completed(124, "", "nft did not end within 30 s")}, "the packet filters", "nft did not end within 30 s"),
    ({NFT: Completed(1, "", "Operation not permitted")}, "the packet filters", "Operation not permitted"),
    ({NFT: IN_IPTABLES, SAVE: "*nat\n-A 'x\n"}, "the packet filters", "No closing quotation"),
    (
        {NFT: IN_IPTABLES, SAVE: Completed(1, "", "no lock")},
        "the packet filters",
        "`iptables-save` ended with 1: no lock",
    ),
    ({"ip -j -4": "{"}, "the cache of redirects", "JSONDecodeError"),
    ({"ip -j -4": "[7]"}, "the cache of redirects", "AttributeError"),
    ({"ip -j -4": Completed(255, "", "")}, "the cache of redirects", "ended with 255: no message"),
    ({"ip -j -4": PermissionError(13, "Permission denied")}, "the cache of redirects", "Permission denied"),
    ({"rules": ValueError("new attribute")}, "the list of rules", "ValueError: new attribute"),
    ({"neighbour": OSError(5, "Input/output error")}, "the proxies", "Input/output error"),
]


@pytest.mark.parametrize(("sayings", "what", "reason"), NONSENSE)
@pytest.mark.parametrize("early", [False, True])
def test_what_a_host_says_that_makes_no_sense_is_named_and_not_the_end(host, monkeypatch, sayings, what, reason, early):
    host.apply()
    for name, saying in sayings.items():
        if hasattr(host.host.kernel, name):
            monkeypatch.setattr(host.host.kernel, name, fake_doctor.raising(saying))
        else:
            host.outputs[name] = saying
    facts = gather.look(host.sources, documents.load(fakes.RETURN_PATH) if early else None)
    assert reason in facts.unread[what]
    # The engine itself meets the same when it compares the host with a document.
    assert set(facts.unread) <= {what, "what differs from the documents"}
    found = [one for one in registry.examine(facts) if one.status in ("fail", "warn")]
    assert {one.id for one in found} <= {"unread", "waiting"}
    assert any(one.id == "unread" and one.subject == what for one in found)


def test_a_systemd_that_does_not_answer_is_named(host, tmp_path):
    host.apply()
    host.outputs["systemctl show"] = Completed(124, "", "systemctl did not end within 30 s")
    facts = gather.look(replace(host.sources, systemd=str(tmp_path)))
    assert "did not end within 30 s" in facts.unread["the list of units"]
    assert cases.complaints(facts) == [("warn", "unread")]


@pytest.mark.parametrize(
    ("file", "text", "what"),
    [
        ("thread-self/net/tcp", b"sl local_address\nnonsense\n", "the list of sockets"),
        ("sys/net/netfilter/nf_conntrack_count", b"many\n", "the size of the conntrack table"),
        ("thread-self/net/tcp", b"\xff\xfe", "the list of sockets"),
    ],
)
def test_a_file_of_nonsense_is_named_and_not_the_end(host, tmp_path, file, text, what):
    host.apply()
    for name in ("sys/net/netfilter/nf_conntrack_max", file):
        path = tmp_path / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    facts = gather.look(replace(host.sources, proc=str(tmp_path / "proc")))
    assert what in facts.unread
    assert {check for _status, check in cases.complaints(facts)} == {"unread"}


def test_a_kernel_without_a_kind_of_tables_has_none_of_that(host):
    host.apply()
    host.outputs[NFT] = Completed(1, "", "Error: cache initialization failed: Protocol not supported")
    facts = gather.look(host.sources)
    assert (facts.ruleset.chains, facts.unread) == ({}, {})
    host.outputs[NFT] = IN_IPTABLES
    host.outputs[SAVE] = "*filter\n:INPUT DROP [0:0]\nCOMMIT\n"
    host.outputs["ip6tables-save"] = Completed(1, "", "Address family not supported by protocol")
    facts = gather.look(host.sources)
    assert (list(facts.ruleset.chains), facts.unread) == ([("iptables filter", "INPUT")], {})


@pytest.mark.parametrize("command", ["iptables-legacy", "iptables"])
def test_legacy_tables_are_listed_by_whichever_command_there_is(host, tmp_path, command):
    host.apply()
    names = tmp_path / "proc" / "thread-self" / "net" / "ip_tables_names"
    names.parent.mkdir(parents=True)
    names.write_text("nat\n")
    host.outputs[f"{command}-save"] = "*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n"
    facts = gather.look(replace(host.sources, proc=str(tmp_path / "proc")))
    assert list(facts.ruleset.chains) == [(f"{command} nat", "POSTROUTING")]
