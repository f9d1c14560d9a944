# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Faults caused by other tools, people and hardware, under load: each is repaired within 2 s, and counted.

The tests depend on their order: tools that one test installs stay for the next.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from tests.chaos.fleet import BACKENDS, INVENTORY, Fleet, measure, plug_in_again
from tests.chaos.load import PATIENCE as CONNECTION
from tests.lab import ansible
from tests.support.waiting import eventually

#: Seconds for which a fault is watched without a keeper, to see that it does not heal by itself.
CONTROL = 1.5


@dataclass(frozen=True)
class Break:
    """A script that removes something of ours on a host; ``repaired`` is the kind of object the keeper counts."""

    name: str
    host: str
    script: str
    repaired: str


BREAKS = [
    Break("rules removed on B", "b", "ip rule flush protocol 202; ip -6 rule flush protocol 202", "rule"),
    Break("rules removed on A", "a", "ip rule flush protocol 201; ip -6 rule flush protocol 201", "rule"),
    Break("ip route flush table on B", "b", "ip route flush table 20111; ip -6 route flush table 20111", "route"),
    Break("ip route flush table on A", "a", "ip route flush table 20100; ip -6 route flush table 20100", "route"),
    Break("nft flush ruleset on B", "b", "nft flush ruleset", "marks"),
    Break("restart of nftables.service on C", "c", "systemctl restart nftables", "marks"),
]


def put_back(fleet: Fleet, report, case: Break) -> None:
    before = fleet.state(case.host)["repairs"]["by_kind"].get(case.repaired, 0)
    state, _noticed = measure(fleet, report, case.name, case.host, lambda: fleet.sh(case.host, case.script))
    assert state["repairs"]["by_kind"][case.repaired] > before
    assert state["documents"].popitem()[1]["state"] == "in place"


def stays_removed(fleet: Fleet, case: Break) -> None:
    """The negative control: the same without the keeper."""
    whole = fleet.ours(case.host)
    fleet.keeper(case.host, "stop")
    try:
        assert fleet.ours(case.host) == whole, "what is in place stays when the keeper stops"
        fleet.sh(case.host, case.script)
        deadline = time.monotonic() + CONTROL
        while time.monotonic() < deadline:
            assert fleet.ours(case.host) != whole
            time.sleep(0.1)
    finally:
        fleet.keeper(case.host, "start")
    eventually(lambda: fleet.ours(case.host) == whole)


@pytest.mark.parametrize("case", BREAKS, ids=[case.name for case in BREAKS])
def test_removed_objects_are_restored(fleet, report, case):
    put_back(fleet, report, case)


@pytest.mark.parametrize("case", BREAKS, ids=[case.name for case in BREAKS])
def test_without_the_keeper_removed_objects_stay_removed(fleet, case):
    stays_removed(fleet, case)


def flap(fleet: Fleet, host: str) -> None:
    fleet.sh(host, "ip link set eth0 down; ip link set eth0 up")
    plug_in_again(fleet.lab, host)


def test_a_link_flap_on_a_backend_is_repaired(fleet, report):
    before = fleet.count("b")
    measure(fleet, report, "link flap on B", "b", lambda: flap(fleet, "b"))
    assert fleet.count("b") > before


def test_a_link_flap_on_the_proxy_removes_nothing(fleet, report):
    measure(fleet, report, "link flap on A", "a", lambda: flap(fleet, "a"))


NETWORK = """
mkdir -p /etc/systemd/network
cat > /etc/systemd/network/10-eth0.network <<END
[Match]
Name=eth0
[Network]
Address={ipv4}/24
Address={ipv6}/64
Gateway=198.18.0.1
Gateway=2001:db8::1
END
"""


def test_a_networkd_restart_is_repaired(fleet, report):
    """Without the role's drop-in, networkd removes every rule that it did not add."""
    host = fleet["d"]
    fleet.sh("d", NETWORK.format(ipv4=host.ipv4, ipv6=host.ipv6))
    whole, before = fleet.ours("d"), fleet.count("d")
    fleet.sh("d", "rm -f /etc/systemd/networkd.conf.d/50-l4proxy.conf; systemctl start systemd-networkd")
    eventually(lambda: fleet.count("d") > before and fleet.ours("d") == whole)
    before = fleet.count("d")
    state, _noticed = measure(
        fleet,
        report,
        "restart of systemd-networkd on D",
        "d",
        lambda: fleet.sh("d", "systemctl restart systemd-networkd"),
    )
    assert fleet.count("d") > before
    assert "systemd-networkd" in state["last_repair"]["who"]


def test_with_the_drop_in_networkd_keeps_our_rules(fleet, report):
    run = ansible.play(fleet.lab.prefix, "trueip.l4proxy.site", [INVENTORY], "--limit", "d")
    assert run.status == 0, run.output
    assert "ManageForeignRoutingPolicyRules=no" in fleet.sh("d", "cat /etc/systemd/networkd.conf.d/50-l4proxy.conf")
    before = fleet.count("d")
    measure(
        fleet,
        report,
        "the same with the role's drop-in",
        "d",
        lambda: fleet.sh("d", "systemctl restart systemd-networkd"),
    )
    assert fleet.count("d") == before


FIREWALLS = [
    ("firewalld", "d", "firewall-cmd --permanent --add-port=8080/tcp", "firewall-cmd --reload"),
    ("ufw", "c", "ufw allow 8080/tcp; ufw --force enable", "ufw reload"),
]


@pytest.mark.parametrize(("package", "host", "prepare", "reload"), FIREWALLS, ids=[row[0] for row in FIREWALLS])
def test_a_firewall_reload_is_repaired(fleet, report, package, host, prepare, reload):
    fleet.sh(host, f"DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends {package}", 120)
    fleet.sh(host, prepare)
    measure(fleet, report, f"{package} reload on {host.upper()}", host, lambda: fleet.sh(host, reload))


IPTABLES = Break("iptables -t mangle -F on C", "c", "iptables -t mangle -F; ip6tables -t mangle -F", "marks")


def test_flushed_iptables_marks_are_restored(fleet, report):
    """On the host where ufw has installed iptables."""
    fleet.change_document("c", lambda document: document.update(mark_engine="iptables"))
    eventually(lambda: "L4PROXY_RETURN_PATH_OUT" in fleet.ours("c") and "table inet l4proxy" not in fleet.ours("c"))
    put_back(fleet, report, IPTABLES)
    stays_removed(fleet, IPTABLES)


def test_the_marks_follow_a_changed_proxy_mac(fleet, report):
    """The inventory declares no MAC, so the marks follow a change, and a change back.

    A announces the change; otherwise the client's router would not learn it either.
    """
    fleet.sh("a", "sysctl -qw net.ipv4.conf.eth0.arp_notify=1 net.ipv6.conf.eth0.ndisc_notify=1")
    usual, other = fleet["a"].mac, "02:00:00:00:0a:0a"
    for old, new, name in ((usual, other, "A's MAC changed"), (other, usual, "A's MAC changed back")):
        whole, before = fleet.ours("b").replace(old, new), fleet.count("b")
        command = f"ip link set eth0 address {new}"
        measure(fleet, report, name, "b", lambda command=command: fleet.sh("a", command), whole)
        assert fleet.count("b") > before
        for backend in BACKENDS:
            eventually(lambda backend=backend, new=new: new in fleet.ours(backend))


@pytest.mark.parametrize("host", ["b", "a"])
def test_a_restarted_host_serves_again(fleet, report, host):
    measure(fleet, report, f"restart of {host.upper()}", host, lambda: fleet.lab.restart(host), boots=True)
    assert fleet.state(host)["restored_at_start"] > 0


def test_a_booting_backend_leaks_nothing(fleet):
    """Not one packet, although connections arrive before its keeper has seen a link."""
    leaked = fleet.leaked("b")
    fleet.lab.restart("b")
    eventually(lambda: fleet.state("b").get("documents", {}).get("return_path", {}).get("state") == "in place")
    time.sleep(CONNECTION)
    assert fleet.leaked("b") == leaked
    units = ("l4proxy-keeper.service", "network-pre.target")
    ready, network = [fleet.sh("b", f"systemctl show -P ActiveEnterTimestampMonotonic {unit}") for unit in units]
    assert 0 < int(ready) <= int(network)
    assert "ordering cycle" not in fleet.sh("b", "journalctl --boot --output cat")
