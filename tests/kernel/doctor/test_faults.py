# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Faults are injected into intact hosts: the doctor reports them first, and only while they last."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host import runner

from tests.kernel.doctor.clinic import CLIENTS
from tests.support import routing
from tests.support.routing import PORT

HOSTS = ["a", "a2", "b", "c", "d"]


@dataclass(frozen=True)
class Fault:
    """The check that must report a fault, with words of the finding; commands that break and repair the host.

    ``silent``: a spoofed handshake from a with that host (or with b) times out while the fault lasts.
    """

    host: str
    check: str
    says: str
    breaks: str
    mends: str = "true"
    silent: bool = False
    ports: tuple = ()


def table(base: str, rule: str) -> str:
    return f"nft 'table inet test {{ chain c {{ type {base}; {rule}; }}; }}'"


def sysctl(name: str, value: str) -> str:
    return f"sysctl -w '{name}={value}'"


NO_TABLE = "nft delete table inet test"
DROP = "filter hook input priority 0; policy drop"
OVERWRITE = "iptables -t mangle -{} PREROUTING -j CONNMARK --set-mark 0x12"
FAULTS = {
    "the table's next hop is the router": Fault(
        "b", "routes", "now: ip route default via 198.18.0.1",
        "ip route replace default via 198.18.0.1 table 20111 proto 202", silent=True),
    "another owner's route in the table": Fault(
        "b", "taken", "table 20111 already holds routes of another owner (proto boot)",
        "ip route replace default via 198.18.0.1 table 20111", "ip route flush table 20111", silent=True),
    "the return route is gone": Fault(
        "b", "routes", "add ip -6 route default via 2001:db8::11", "ip -6 route flush table 20111"),
    "the lookup rule is gone": Fault(
        "b", "rules", "add ip rule 1100: from all fwmark 0xb/0xff", "ip rule del priority 1100 fwmark 11/255",
        silent=True),
    "the firewall was reloaded": Fault("b", "marks", "marks: a (0xb)", "nft flush ruleset", silent=True),
    "a rule of another tool comes first": Fault(
        "b", "rule_before", "`ip rule 100: from all lookup 254`", "ip rule add priority 100 lookup main",
        "ip rule del priority 100", silent=True),
    "another table overwrites the mark": Fault(
        "b", "mark_clobbered", "meta mark set 0x40000",
        table("route hook output priority 0", "tcp sport 8080 meta mark set 0x40000"), NO_TABLE, silent=True),
    "iptables overwrites the connection's mark": Fault(
        "b", "mark_clobbered", "-A PREROUTING -j CONNMARK --set-xmark 0x12", OVERWRITE.format("A"),
        f"{OVERWRITE.format('D')}; nft delete table ip mangle", silent=True),
    "the firewall admits the proxy and not its clients": Fault(
        "b", "firewall", "accepts proxy a but drops clients such as 198.18.1.10",
        table(DROP, "icmpv6 type 135-136 accept; ip saddr 198.18.0.11 accept"), NO_TABLE, silent=True),
    "iptables lets nobody in": Fault(
        "b", "firewall",
        "drops clients such as 198.18.1.10 at tcp port 8080 (the policy of chain iptables filter INPUT",
        "iptables -P INPUT DROP", "iptables -P INPUT ACCEPT; nft delete table ip filter", silent=True,
        ports=(("tcp", PORT),)),
    "there is no default route": Fault(
        "b", "default_route", "there is no ipv4 route to 198.18.1.10", "ip route del default",
        "ip route add default via 198.18.0.1", silent=True),
    "a rule of another goes by our bits": Fault(
        "b", "mark_shared", "uses our bits (0xb/0xff)", "ip rule add priority 2000 fwmark 0xb0b/0xffff lookup 7",
        "ip rule del priority 2000"),
    "someone accepts redirects": Fault(
        "b", "settings", "all.accept_redirects: 1 -> 0", sysctl("net.ipv4.conf.all.accept_redirects", "1")),
    "rp_filter is strict where clients come in": Fault(
        "c", "rp_filter", "rp_filter on eth1 is 1 (strict", sysctl("net.ipv4.conf.eth1.rp_filter", "1"),
        sysctl("net.ipv4.conf.eth1.rp_filter", "0"), silent=True),
    "the proxy's interface is down": Fault(
        "c", "links", "interface eth1 is down", "ip link set eth1 down",
        "ip link set eth1 up; ip -6 addr replace 2001:db8:2::22/64 dev eth1 nodad"),
    "the second address is gone": Fault(
        "d", "addresses", "add ip addr 198.18.0.33 dev eth0", "ip addr del 198.18.0.33/32 dev eth0"),
    "the local route is gone": Fault(
        "a", "routes", "add ip route local default dev lo table 20100", "ip route flush table 20100", silent=True),
    "the rule of local delivery is gone": Fault(
        "a", "rules", "ipproto tcp lookup 20100", "ip rule del priority 1100 from 198.18.0.21 ipproto tcp",
        silent=True),
    "a bare rule makes the proxy answer ARP": Fault(
        "a", "arp", "`ip rule 1099: from 198.18.0.21 lookup 20100`",
        "ip rule add priority 1099 from 198.18.0.21 lookup 20100", "ip rule del priority 1099"),
    "the proxy routes": Fault(
        "a", "ip_forward", "net.ipv4.ip_forward is 1", sysctl("net.ipv4.ip_forward", "1"),
        sysctl("net.ipv4.ip_forward", "0")),
    "the proxy's firewall drops replies": Fault(
        "a", "firewall", "drops replies of backend 198.18.0.21",
        table(DROP, "icmpv6 type 135-136 accept; tcp dport 80 accept"), NO_TABLE, silent=True),
    "few ephemeral ports": Fault(
        "a", "port_range", "1001 ephemeral ports (40000-41000)",
        sysctl("net.ipv4.ip_local_port_range", "40000 41000"), sysctl("net.ipv4.ip_local_port_range", "32768 60999")),
    "src_valid_mark beside the mark of sockets": Fault(
        "a2", "src_valid_mark", "src_valid_mark on eth0 is 1", sysctl("net.ipv4.conf.all.src_valid_mark", "1"),
        sysctl("net.ipv4.conf.all.src_valid_mark", "0")),
    "somebody switches forwarding off": Fault(
        "a2", "forwarding", "net.ipv6.conf.all.forwarding is 0", sysctl("net.ipv6.conf.all.forwarding", "0")),
    "an interface does not forward": Fault(
        "a2", "forwarding", "net.ipv4.conf.eth0.forwarding is 0", sysctl("net.ipv4.conf.eth0.forwarding", "0"),
        sysctl("net.ipv4.conf.eth0.forwarding", "1")),
    "conntrack ignores what it has not seen from the beginning": Fault(
        "a2", "tcp_loose", "nf_conntrack_tcp_loose is 0", sysctl("net.netfilter.nf_conntrack_tcp_loose", "0")),
    "Docker's policy for forwarded packets": Fault(
        "a2", "forward_filter", "drops clients' packets of kernel service web (the policy of chain iptables filter",
        "iptables -P FORWARD DROP", "iptables -P FORWARD ACCEPT; nft delete table ip filter"),
    "a firewall forwards established connections and translated ones": Fault(
        "a2", "forward_filter", "drops replies after a take-over of kernel service web",
        table("filter hook forward priority 10; policy drop", "ct state established accept; ct status dnat accept"),
        NO_TABLE),
    "another tool translates the virtual address": Fault(
        "a2", "virtual_address", "translates tcp port 80 of 198.18.0.100",
        table("nat hook prerouting priority -110", "tcp dport 80 dnat ip to 198.18.0.99"), NO_TABLE),
    "connections to the virtual address are not tracked": Fault(
        "a2", "virtual_address", "disables conntrack for tcp port 80 of 198.18.0.100",
        table("filter hook prerouting priority -300", "tcp dport 80 notrack"), NO_TABLE),
    "a SYN proxy answers at the virtual address": Fault(
        "a2", "virtual_address", "answers in place of tcp port 80 of 198.18.0.100",
        table("filter hook forward priority -1", "tcp dport 80 ct state invalid,untracked synproxy"), NO_TABLE),
    "rp_filter is strict where the clients of the kernel come in": Fault(
        "a2", "rp_filter", "rp_filter on eth0 is 1",
        "ip link add d0 up type veth peer d1; ip link set d1 up; ip route add 198.18.1.10 dev d0; "
        + sysctl("net.ipv4.conf.eth0.rp_filter", "1"),
        f"ip link del d0; {sysctl('net.ipv4.conf.eth0.rp_filter', '0')}"),
    "frames of a bridge pass the forward hook": Fault(
        "a2", "others_forward", "so frames between the ports of guests pass the forward hook",
        f"ip link add guests up type bridge; {sysctl('net.bridge.bridge-nf-call-iptables', '1')}",
        f"ip link del guests; {sysctl('net.bridge.bridge-nf-call-iptables', '0')}"),
    "Docker begins to forward after the services": Fault(
        "a2", "others_forward", "is for packets that this host forwards for others, but these are dropped",
        table("nat hook postrouting priority 100", "ip saddr 172.17.0.0/16 oifname != docker0 masquerade"), NO_TABLE),
    "masquerading hides the clients of the kernel": Fault(
        "a2", "source_nat", "rewrites the source address of what the kernel forwards to 198.18.0.21",
        table("nat hook postrouting priority 110", "oifname eth0 masquerade"), NO_TABLE),
}  # fmt: skip


def shell(host, command: str) -> None:
    host.run(["sh", "-ec", command])


def handshake(clinic, name: str = "b") -> str:
    backend = clinic.lab["c"].on("side") if name == "c" else clinic.lab["b"]
    return routing.handshake(clinic.lab["a"], CLIENTS["ipv4"], backend.ipv4)


@pytest.mark.parametrize("name", HOSTS)
def test_there_are_no_findings_on_an_intact_host(clinic, name):
    assert clinic.complaints(name) == []


@pytest.mark.parametrize("name", ["b", "c"])
def test_the_path_of_an_intact_lab_works(clinic, name):
    assert handshake(clinic, name) == "established"


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_the_first_finding_and_only_while_it_lasts(clinic, fault):
    host = clinic.lab[fault.host]
    shell(host, fault.breaks)
    try:
        found = clinic.complaints(fault.host, fault.ports)
        outcome = handshake(clinic, fault.host) if fault.silent else "not tried"
    finally:
        shell(host, fault.mends)
        clinic.heal(fault.host)
    assert [found[0].id, fault.says in found[0].what] == [fault.check, True], [finding.line for finding in found]
    assert outcome == ("silent" if fault.silent else "not tried")
    assert clinic.complaints(fault.host, fault.ports) == []


def test_an_accepted_icmp_redirect_is_reported(clinic):
    a, b = clinic.lab["a"], clinic.lab["b"]
    settings = [("a", "ip_forward", "1"), ("a", "conf.all.send_redirects", "1"), ("a", "conf.eth0.send_redirects", "1")]
    settings += [("b", "conf.all.accept_redirects", "1"), ("b", "conf.eth0.accept_redirects", "1")]
    for name, key, value in settings:
        clinic.lab[name].sysctl(f"net.ipv4.{key}", value)
    target = CLIENTS["ipv4"]
    # a forwards the ping only because this rule of local delivery is missing.
    a.run(["ip", "rule", "del", "priority", "1100", "from", b.ipv4, "ipproto", "icmp"])
    b.run(["ping", "-m", "11", "-c", "3", "-i", "0.2", "-W", "1", target], check=False)
    for name, key, _value in settings:
        clinic.lab[name].sysctl(f"net.ipv4.{key}", "0")
    clinic.heal("a")
    found = clinic.complaints("b")
    assert (found[0].id, found[0].subject) == ("redirected", target), [finding.line for finding in found]
    assert "go to 198.18.0.1, because of an ICMP redirect" in found[0].what
    assert routing.handshake(a, target, b.ipv4) == "silent"
    b.run(["ip", "route", "flush", "cache"])
    assert clinic.complaints("b") == []


def test_a_wildcard_udp_server_is_reported_with_strategy_address(clinic):
    ports = (("udp", 5300),)
    with clinic.lab["d"].inside():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server:
        server.bind(("0.0.0.0", 5300))
        found = clinic.complaints("d", ports)
        assert [finding.id for finding in found] == ["udp_source"]
    assert clinic.complaints("d", ports) == []


def test_a_proxy_with_another_mac_is_reported(clinic, tmp_path):
    """The declared MAC differs from the neighbour table."""
    b = clinic.lab["b"]
    data = clinic.documents["b"]
    wrong = {**data, "marks": [{**data["marks"][0], "mac": "02:00:00:00:00:aa"}]}
    clinic.lab.engine.apply(b, wrong)
    (tmp_path / "return_path.json").write_text(json.dumps(wrong))
    found = clinic.complaints("b", directory=str(tmp_path))
    assert found[0].id == "proxy_mac"
    assert "198.18.0.11 is at 02:00:00:00:00:11" in found[0].what
    clinic.heal("b")
    assert clinic.complaints("b") == []


def test_an_unreadable_document_is_reported(clinic, tmp_path):
    (tmp_path / "return_path.json").write_text("{")
    assert clinic.complaints("b", directory=str(tmp_path))[0].id == "documents"


# Faults reported before the first change, on a host without our objects: (host, fault, check).
EARLY = [
    ("c", "rp_filter is strict where clients come in", "rp_filter"),
    ("b", "there is no default route", "default_route"),
    ("b", "a rule of another tool comes first", "rule_before"),
    ("b", "another table overwrites the mark", "mark_clobbered"),
    ("a", "the proxy's firewall drops replies", "firewall"),
    ("a2", "src_valid_mark beside the mark of sockets", "src_valid_mark"),
]


@pytest.mark.parametrize(("name", "fault", "check"), EARLY, ids=[row[2] for row in EARLY])
def test_faults_are_reported_before_the_first_change(clinic, name, fault, check):
    host, wanted = clinic.lab[name], clinic.documents[name]
    assert clinic.complaints(name, wanted=wanted) == [], "a second run changes nothing, and nothing is in its way"
    clinic.lab.engine.remove(host, wanted["owner"])
    try:
        assert clinic.complaints(name, wanted=wanted) == []
        shell(host, FAULTS[fault].breaks)
        assert {finding.id for finding in clinic.complaints(name, wanted=wanted)} == {check}
    finally:
        shell(host, FAULTS[fault].mends)
        clinic.heal(name)


def test_a_proxy_in_no_network_of_the_backend_is_refused_before_the_first_change(clinic):
    far = {**clinic.documents["b"], "routes": []}
    for route in clinic.documents["b"]["routes"]:
        via = {"ipv4": "203.0.113.9", "ipv6": "2001:db8:77::9"}[route["family"]]
        far["routes"].append({**route, "via": via})
    assert {finding.id for finding in clinic.complaints("b", wanted=far)} == {"proxy_on_link"}


def test_published_container_ports_are_no_fault(clinic):
    b = clinic.lab["b"]
    shell(b, table("nat hook prerouting priority -100", "tcp dport 9999 dnat ip to 198.18.0.99"))
    try:
        assert clinic.complaints("b") == []
    finally:
        b.run(NO_TABLE.split())


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo nonsense", "JSONDecodeError"),
        ("echo no >&2; exit 3", "failed with status 3: no"),
        ("sleep 60; true", "within 1 s"),
    ],
)
def test_a_tool_that_hangs_or_fails_is_reported_and_the_rest_is_checked(clinic, tmp_path, monkeypatch, script, said):
    """A script replaces nft. Other checks still find a foreign rule."""
    (tmp_path / "nft").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nft").chmod(0o755)
    monkeypatch.setattr(runner, "TIMEOUT", 1)

    def run(argv, stdin=None):
        return runner.run([str(tmp_path / "nft"), *argv[1:]] if argv[0] == "nft" else argv, stdin)

    wanted = clinic.documents["b"]
    host = replace(clinic.lab.engine.host(clinic.lab["b"]), runner=run)
    for early in (wanted, None):
        found = clinic.complaints("b", wanted=early, host=host)
        assert {finding.id for finding in found} <= {"unread", "waiting"}
        assert any(
            "the packet filters could not be read: " in finding.what and said in finding.what for finding in found
        )
    shell(clinic.lab["b"], "ip rule add priority 100 lookup main")
    try:
        assert "rule_before" in [finding.id for finding in clinic.complaints("b", wanted=wanted, host=host)]
    finally:
        shell(clinic.lab["b"], "ip rule del priority 100")


def test_the_doctor_command_prints_findings_and_sets_the_exit_status(clinic, tmp_path):
    lab = clinic.lab
    # The command uses the machine's sysctl memory, so this document has no sysctls.
    (tmp_path / "return_path.json").write_text(json.dumps({**clinic.documents["b"], "sysctls": []}))
    command = ["doctor", "--directory", str(tmp_path), "--config", str(tmp_path / "none")]
    whole = lab.l4proxy("b", command)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert whole.stdout.splitlines()[-1].startswith("ok ")
    lab["b"].run(["nft", "flush", "ruleset"])
    broken = lab.l4proxy("b", [*command, "--json", "--client", CLIENTS["ipv4"]])
    clinic.heal("b")
    assert broken.returncode == 1
    found = json.loads(broken.stdout)
    assert [found["schema"], found["failed"], found["findings"][0]["id"]] == [1, 1, "marks"]
    assert lab.l4proxy("b", [*command, "--client", "nobody"]).returncode == 2
