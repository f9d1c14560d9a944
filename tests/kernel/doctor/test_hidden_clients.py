# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Source NAT and relays hide the client's address while traffic works: the doctor reports them, and its fix works."""

from __future__ import annotations

import re
import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._source_proof import observer, sender
from ansible_collections.trueip.l4proxy.plugins.module_utils._source_proof.sample import make_samples

from tests.kernel.doctor.clinic import CLIENTS
from tests.support.addresses import AF
from tests.support.forwarding import Forwarder, make_config, make_service
from tests.support.routing import attempt
from tests.support.waiting import PATIENCE, eventually

PORT = 8090
OF = {"ipv4": "ip", "ipv6": "ip6"}


def server(host, family: str, port: int = PORT) -> socket.socket:
    with host.inside():
        listener = socket.socket(AF[family], socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("::" if family == "ipv6" else "0.0.0.0", port))
    listener.listen()
    listener.settimeout(PATIENCE)
    return listener


def seen(clinic, family: str) -> str:
    """The client address that a server on b sees (getpeername) in a spoofed connection from a."""
    with server(clinic.lab["b"], family) as listener:
        target = getattr(clinic.lab["b"], family)
        with attempt(clinic.lab["a"], CLIENTS[family], target, PORT):
            connection, peer = listener.accept()
            connection.close()
    return peer[0]


def proven(clinic, family: str, account: int = 0, patience: float = PATIENCE) -> set[str]:
    """The source addresses that b finds on samples from a, over TCP and UDP."""
    sources = {"ipv4": "198.51.100.11", "ipv6": "2001:db8:ffff::11"}
    target = {"address": getattr(clinic.lab["b"], family), "port": PORT, "source": sources[family]}
    sent = make_samples([{**target, "protocol": protocol} for protocol in ("tcp", "udp")])
    with clinic.lab["a"].inside():
        sender.send_in_background(sent, 2, account)
    with clinic.lab["b"].inside():
        seen = observer.observe(sent, patience)
    return {"spoofed" if one == sources[family] else one for one in seen}


def shell(host, *commands: str) -> None:
    for command in commands:
        host.run(["sh", "-c", command])


def nft(chain: str, *rules: str, family: str = "inet", base: str = "type nat hook postrouting priority srcnat") -> str:
    """A command that adds a table ``t`` with a chain ``post`` and its rules; ``chain`` is the rest of the table."""
    body = "\n".join(f"    {rule}" for rule in rules)
    return f"nft -f - <<'N'\ntable {family} t {{\n{chain}\n  chain post {{\n    {base};\n{body}\n  }}\n}}\nN"


INPUT_NAT = "type nat hook input priority 100"
ZONE = "  chain zone {\n    oifname != lo counter masquerade\n  }\n"
# Source NAT as nft, both kinds of iptables, and common tools configure it:
# (host, commands with FAMILY's ip, ip6, iptables, ip6tables and an OWN address of the host)
HIDING = {
    "nft, by interface": ("a", [nft("", 'oifname "eth0" masquerade', family="{ip}")]),
    "nft inet, everything": ("a", [nft("", "masquerade random")]),
    "nft, in a chain of a zone": ("a", [nft(ZONE, 'oifname "eth0" jump zone')]),
    "nft, snat": ("a", [nft("", "oifname eth* snat to {own}", family="{ip}")]),
    "nft, a chain with the name of iptables'": (
        "a",
        [nft("", "masquerade").replace("chain post", "chain POSTROUTING").replace("inet t", "inet nat")],
    ),
    "iptables, PostUp of a VPN": ("a", ["{iptables} -t nat -A POSTROUTING -o eth0 -j MASQUERADE"]),
    "iptables, SNAT by port": (
        "a",
        [f"{{iptables}} -t nat -A POSTROUTING -p tcp --dport {PORT} -j SNAT --to-source {{own}}"],
    ),
    "iptables, in a chain of its own": (
        "a",
        [
            "{iptables} -t nat -N post_public",
            "{iptables} -t nat -A post_public ! -o lo -j MASQUERADE --random-fully",
            "{iptables} -t nat -A POSTROUTING -o eth+ -g post_public",
        ],
    ),
    "legacy iptables": ("a", ["{legacy} -t nat -A POSTROUTING -o eth0 -j MASQUERADE"]),
    "input NAT of the backend": ("b", [nft("", f"tcp dport {PORT} snat to {{own}}", family="{ip}", base=INPUT_NAT)]),
    "iptables, input NAT of the backend": (
        "b",
        [f"{{iptables}} -t nat -A INPUT -p tcp --dport {PORT} -j SNAT --to-source {{own}}"],
    ),
}
# Source NAT that does not affect the clients. Conditions on a single rule are in tests/unit (test_nft_rules.py).
HARMLESS = {
    "a VPN's network": ("a", [nft("", 'ip saddr 10.8.0.0/24 oifname "eth0" masquerade'), nft("", "masquerade").replace(
        "masquerade", "ip6 saddr fd08::/64 masquerade").replace(" t ", " t2 ")]),
    "the proxy's own packets": ("a", [nft("", "fib saddr type local masquerade", family="ip")]),
    "the proxy's own packets, iptables": (
        "a", ["{iptables} -t nat -A POSTROUTING -m addrtype --src-type LOCAL -j MASQUERADE"],
    ),
    "marked by Kubernetes": ("a", [
        "{iptables} -t nat -N KUBE-POSTROUTING",
        "{iptables} -t nat -A POSTROUTING -j KUBE-POSTROUTING",
        "{iptables} -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "{iptables} -t nat -A KUBE-POSTROUTING -j MASQUERADE --random-fully",
    ]),
    "marked by Kubernetes, nft": ("a", [nft("", "meta mark & 0x4000 == 0 return", "masquerade")]),
    "containers of Docker": ("a", ["iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"]),
    "exempt by account": ("a", [nft("", "meta skuid 0 accept", "masquerade")]),
    "exempt by address": ("a", [nft("", "{ip} daddr {b} accept", 'oifname "eth0" masquerade', family="{ip}")]),
    "the backend's own way out": ("b", [nft("", 'oifname "eth0" masquerade')]),
    "the backend's own way out, iptables": ("b", ["{iptables} -t nat -A POSTROUTING -o eth0 -j MASQUERADE"]),
    "a port that is redirected on the backend": (
        "b", [nft("", f"tcp dport 80 redirect to :{PORT}", base="type nat hook prerouting priority dstnat")],
    ),
}  # fmt: skip
CLEAN = "nft delete table inet t; nft delete table inet t2; nft delete table inet nat; nft delete table {ip} t; "
CLEAN += "nft delete table {ip} nat; {legacy} -t nat -F; {legacy} -t nat -X; true"


@pytest.fixture
def with_rules(clinic):
    """A function that runs commands on a host for a family; their rules are removed in the end."""
    cleanings = []

    def apply(name: str, commands: list[str], family: str) -> None:
        host = clinic.lab[name]
        words = {
            "ip": OF[family],
            "iptables": f"{OF[family]}tables",
            "legacy": f"{OF[family]}tables-legacy",
            "own": getattr(host, family),
            "b": getattr(clinic.lab["b"], family),
        }

        def filled(text: str) -> str:
            return re.sub(r"\{(\w+)\}", lambda found: words[found[1]], text)

        cleanings.append((host, filled(CLEAN)))
        shell(host, *map(filled, commands))

    yield apply
    for host, command in cleanings:
        shell(host, command)


@pytest.fixture(scope="module")
def running(clinic):
    """The paths of a forwarder on a, whose backend is b."""
    service = make_service(clinic.lab, "web", 80, PORT, backends=("b",))
    with Forwarder(clinic.lab, make_config(service)) as forwarder:
        yield {"config": str(forwarder.config), "runtime": str(forwarder.directory / "forwarder.json")}


def complaints(clinic, name: str, running: dict) -> list:
    """The findings of check source_nat."""
    options = running if name == "a" else {}
    found = clinic.complaints(name, (("tcp", PORT),) if name == "b" else (), **options)
    return [finding for finding in found if finding.id == "source_nat"]


@pytest.mark.parametrize(("name", "commands"), HIDING.values(), ids=HIDING)
def test_source_nat_that_hides_clients_is_reported_and_the_suggested_fix_works(
    clinic, running, with_rules, name, commands, family
):
    assert seen(clinic, family) == CLIENTS[family]
    with_rules(name, commands, family)
    shown = getattr(clinic.lab[name], family)
    assert seen(clinic, family) == shown, "or the test shows nothing"
    # A rule for TCP only, or for b's input, does not match the datagram; b never sees only spoofed sources.
    assert proven(clinic, family) in ({shown}, {shown, "spoofed"})
    found = complaints(clinic, name, running)
    assert {finding.status for finding in found} == {"fail"}
    assert all("rewrites the source address of" in finding.what for finding in found)
    # The commands that the finding suggests.
    shell(clinic.lab[name], *(line for finding in found for line in re.findall("`([^`]+)`", finding.fix)))
    assert seen(clinic, family) == CLIENTS[family]
    assert complaints(clinic, name, running) == []


@pytest.mark.parametrize(("name", "commands"), HARMLESS.values(), ids=HARMLESS)
def test_source_nat_for_other_traffic_is_not_reported(clinic, running, with_rules, name, commands, family):
    with_rules(name, commands, family)
    assert seen(clinic, family) == CLIENTS[family]
    assert proven(clinic, family) == {"spoofed"}
    assert [finding.line for finding in complaints(clinic, name, running)] == []


def test_source_nat_for_the_clients_network_is_reported(clinic, running, with_rules, family):
    network = {"ipv4": "198.18.1.0/24", "ipv6": "2001:db8:1::/64"}[family]
    with_rules("a", [nft("", f"{OF[family]} saddr {network} masquerade")], family)
    assert seen(clinic, family) == getattr(clinic.lab["a"], family)
    assert [finding.status for finding in complaints(clinic, "a", running)] == ["fail"]


def test_source_nat_is_reported_before_the_first_change(clinic, with_rules):
    wanted = clinic.documents["a"]
    with_rules("a", [nft("", "masquerade")], "ipv4")
    found = [finding for finding in clinic.complaints("a", wanted=wanted) if finding.id == "source_nat"]
    assert {finding.status for finding in found} == {"fail"}
    assert clinic.lab["b"].ipv4 in found[0].what


def test_nft_fib_type_local_matches_spoofed_ipv6_sources(clinic, running, with_rules):
    """The fib expression does a route lookup for the source, which our rules of local delivery answer."""
    with_rules("a", [nft("", "fib saddr type local masquerade")], "ipv6")
    assert seen(clinic, "ipv6") == clinic.lab["a"].ipv6
    assert seen(clinic, "ipv4") == CLIENTS["ipv4"]
    assert {(finding.status, ":" in finding.fix) for finding in complaints(clinic, "a", running)} == {("warn", True)}


def test_servers_receive_no_samples(clinic, family):
    """No connection to accept, no datagram to read, and no half-open connection afterwards."""
    b = clinic.lab["b"]
    with b.inside():
        datagrams = socket.socket(AF[family], socket.SOCK_DGRAM)
    with datagrams, server(b, family) as listener:
        datagrams.bind(("::" if family == "ipv6" else "0.0.0.0", PORT))
        listener.setblocking(False)
        datagrams.setblocking(False)
        assert proven(clinic, family) == {"spoofed"}
        for receive in (listener.accept, lambda: datagrams.recv(100)):
            with pytest.raises(BlockingIOError):
                receive()
        eventually(lambda: "SYN-RECV" not in b.run(["ss", "-tan"]).stdout)


def test_dropped_samples_prove_nothing(clinic, with_rules, family):
    with_rules("a", [nft("", "meta l4proto { tcp, udp } drop", base="type filter hook postrouting priority 0")], family)
    assert proven(clinic, family, patience=2) == {""}


def test_samples_are_checked_where_the_container_receives_them(clinic, with_rules, family):
    """b forwards a published port to d and masquerades it: d's packets are what counts."""
    b, d = clinic.lab["b"], clinic.lab["d"]
    setting = {"ipv4": "net.ipv4.ip_forward", "ipv6": "net.ipv6.conf.all.forwarding"}[family]
    target = getattr(d, family) if family == "ipv4" else f"[{d.ipv6}]"
    prerouting = "type nat hook prerouting priority dstnat"
    with_rules("b", [nft("", f"tcp dport {PORT} dnat to {target}:{PORT}", family="{ip}", base=prerouting)], family)
    b.sysctl(setting, "1")
    try:
        assert proven(clinic, family) == {"spoofed"}
        assert complaints(clinic, "b", {}) == []
        shell(b, "nft 'table inet t2 { chain p { type nat hook postrouting priority srcnat; masquerade; }; }'")
        assert proven(clinic, family) == {getattr(b, family), "spoofed"}
        found = complaints(clinic, "b", {})
        assert [(finding.status, f"sends on to {getattr(d, family)}" in finding.what) for finding in found] == [
            ("fail", True)
        ]
        shell(b, *re.findall("`([^`]+)`", found[0].fix))
        assert proven(clinic, family) == {"spoofed"}
        assert complaints(clinic, "b", {}) == []
    finally:
        b.sysctl(setting, "0")


RELAY = """
import socket, sys
family, kind, port, onward, host = sys.argv[1:]
family, kind = getattr(socket, family), getattr(socket, kind)
here = socket.socket(family, kind)
here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
here.bind((host, int(port)))
if kind == socket.SOCK_STREAM:
    here.listen()
    held = []
    while True:
        held += [here.accept(), socket.create_connection(("::1" if ":" in host else "127.0.0.1", int(onward)))]
here.recv(1)
"""


@pytest.mark.parametrize("name", ["docker-proxy", "rootlessport", "socat"])
@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
def test_a_relay_in_front_of_the_server_is_reported(clinic, tmp_path, name, kind, family):
    """The kernel sees the client's address, so no other check fails; the server sees the loopback address."""
    b, onward = clinic.lab["b"], PORT + 1
    (tmp_path / name).symlink_to("/usr/bin/python3")
    (tmp_path / "relay.py").write_text(RELAY)
    family_name = {"ipv4": "AF_INET", "ipv6": "AF_INET6"}[family]
    arguments = [family_name, kind, str(PORT), str(onward), {"ipv4": "0.0.0.0", "ipv6": "::"}[family]]
    served = (("tcp" if kind == "SOCK_STREAM" else "udp", PORT),)

    def complaints(ports=()) -> list:
        return [finding for finding in clinic.complaints("b", ports) if finding.id == "relayed"]

    with server(b, family, onward) as listener:
        assert complaints(served) == []
        process = b.spawn([str(tmp_path / name), str(tmp_path / "relay.py"), *arguments])
        try:
            found = eventually(lambda: complaints(served))
            assert [(finding.status, f"{name} (process {process.pid})" in finding.what) for finding in found] == [
                ("fail", True)
            ]
            assert [finding.status for finding in complaints()] == ["warn"]
            if kind == "SOCK_STREAM":
                with attempt(clinic.lab["a"], CLIENTS[family], getattr(b, family), PORT):
                    assert listener.accept()[1][0] == {"ipv4": "127.0.0.1", "ipv6": "::1"}[family]
        finally:
            process.terminate()
            process.wait()


def test_samples_are_sent_as_the_forwarders_account(clinic, with_rules, family):
    with_rules("a", [nft("", "meta skuid 998 accept", "masquerade")], family)
    assert proven(clinic, family, account=998) == {"spoofed"}
    assert proven(clinic, family) == {getattr(clinic.lab["a"], family)}
