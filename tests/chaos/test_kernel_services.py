# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Faults on a proxy whose kernel forwards services: no connection of these is lost, long streams go on, and their
counters are whole.

The tests depend on their order: tools that one test installs stay for the next.
"""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass

import pytest

from tests.chaos.fleet import INVENTORY, KERNEL, STREAMS, Fleet, Noticed, measure, serve_streams
from tests.lab import ansible, earlier
from tests.support import takeover
from tests.support.addresses import FAMILIES, address_of
from tests.support.waiting import FACTOR, eventually

KINDS = {"down": 10, "up": 10, "echo": 10}
#: Seconds without a byte: the pause of a stream of this kind, and a retransmit of at most half a second.
LATE = {"down": 0.6 * FACTOR, "up": 0.6 * FACTOR, "echo": 1.1 * FACTOR}
DATAGRAMS = {"udp": 10}
#: A lost datagram is repeated after half a second.
LATE["udp"] = 1.6 * FACTOR

#: What Docker does: it drops what is not accepted, owns these chains, and fills them anew when it restarts. Also what
#: the doctor's check forward_filter asks for.
DOCKER = """
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends iptables
iptables -P FORWARD DROP
iptables -N DOCKER-USER
for port in 8081 8082; do
    for protocol in tcp udp; do
        iptables -A DOCKER-USER -p $protocol --dport $port -j ACCEPT
        iptables -A DOCKER-USER -p $protocol --sport $port -j ACCEPT
    done
done
iptables -N DOCKER
iptables -t nat -N DOCKER
iptables -A FORWARD -j DOCKER-USER
iptables -A FORWARD -j DOCKER
iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
"""
RESTART_OF_DOCKER = """
for table in filter nat; do iptables -t $table -F DOCKER; done
iptables -t nat -D PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
iptables -D FORWARD -j DOCKER
iptables -D FORWARD -j DOCKER-USER
iptables -I FORWARD -j DOCKER-USER
iptables -A FORWARD -j DOCKER
iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
iptables -t nat -A DOCKER -p tcp --dport 9999 -j DNAT --to 198.18.0.1
"""
FIREWALLD = """
iptables -P FORWARD ACCEPT # firewalld removes Docker's chains and leaves its policy
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends firewalld
for port in 80/tcp 81/tcp 82/tcp 82/udp; do firewall-offline-cmd --add-port=$port; done
systemctl restart firewalld
until firewall-cmd --state; do sleep 0.2; done
"""


@dataclass(frozen=True)
class Fault:
    """A script that runs on the proxy, after ``prepare``."""

    name: str
    script: str
    prepare: str = "true"
    #: Whether new connections of the forwarder are refused meanwhile.
    stops_forwarder: bool = False


FAULTS = [
    Fault("kill -9 of the forwarder on A", "systemctl kill -s KILL l4proxy-forwarder", stops_forwarder=True),
    Fault("kill -9 of the keeper on A", "systemctl kill -s KILL l4proxy-keeper"),
    Fault("kill -9 of both", "systemctl kill -s KILL l4proxy-keeper l4proxy-forwarder", stops_forwarder=True),
    Fault("restart of both", "systemctl restart l4proxy-keeper l4proxy-forwarder"),
    Fault("reload of both", "systemctl reload l4proxy-keeper l4proxy-forwarder"),
    Fault("conntrack -F on A", "conntrack -F"),
    Fault("rules of Docker on A, flushed and made anew", RESTART_OF_DOCKER, DOCKER),
    Fault("firewalld reload on A", "firewall-cmd --reload", FIREWALLD),
    Fault("restart of firewalld on A", "systemctl restart firewalld"),
]


@pytest.fixture(scope="module")
def ready(fleet):
    """Undo what other tests have changed; backends serve streams when their health checks have passed."""
    run = ansible.play(fleet.lab.prefix, "trueip.l4proxy.site", [INVENTORY])
    assert run.status == 0, run.output
    serve_streams(fleet.lab)
    # Of UDP, no health check says anything.
    eventually(lambda: {one["state"] for one in service(fleet, "streams").get("backends", [])} == {"up"})
    return fleet


@pytest.fixture
def streams(ready):
    """Long streams and UDP flows of kernel services, in both families."""
    lab = ready.lab
    running = [
        takeover.Streams(lab, family, STREAMS, kinds, address_of(lab["a"], family))
        for family in FAMILIES
        for kinds in (KINDS, DATAGRAMS)
    ]
    try:
        yield [one.ready() for one in running]
    finally:
        for one in running:
            one.process.send_signal(signal.SIGKILL)
            one.process.communicate()


def service(fleet: Fleet, name: str) -> dict:
    """The status of a service; empty while no forwarder runs."""
    done = fleet["a"].run(["l4proxy", "status", "--json"], check=False)
    services = json.loads(done.stdout or '{"services": []}')["services"]
    return next((one for one in services if one["name"] == name), {})


def counted(fleet: Fleet) -> int:
    """Connections of clients that the kernel has counted."""
    listing = json.loads(fleet.sh("a", "nft -j list counters table inet l4proxy_datapath"))["nftables"]
    counters = [item["counter"] for item in listing if "counter" in item]
    return sum(one["packets"] for one in counters if one["name"].startswith("new_tcp") and f"-{KERNEL}_" in one["name"])


def disturb(fleet: Fleet, report, streams: list, name: str, harm, **options) -> Noticed:
    """Cause a fault of which no connection of the kernel notices more than a retransmit; all are counted."""
    before, since = counted(fleet), time.time()
    _state, noticed = measure(fleet, report, name, "a", harm, streams=streams, **options)
    assert (noticed.lost_by_kernel, noticed.lost_streams, noticed.leaked) == (0, 0, 0)
    assert {kind: seconds for kind, seconds in noticed.late.items() if seconds > LATE[kind]} == {}
    begun = sum(item["port"] == KERNEL and item["at"] > since for item in fleet.connections())
    assert counted(fleet) >= before + begun > before
    eventually(lambda: (service(fleet, "fast").get("connections") or 0) >= before + begun)
    return noticed


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_no_connection_of_the_kernel_notices(ready, streams, report, fault):
    ready.sh("a", fault.prepare, 120)
    repairs = ready.count("a")
    noticed = disturb(ready, report, streams, fault.name, lambda: ready.sh("a", fault.script), within=1.0)
    assert noticed.lost == 0 or fault.stops_forwarder
    assert ready.count("a") == repairs


def test_no_connection_of_the_kernel_notices_an_upgrade_or_a_rollback(ready, streams, report, tmp_path):
    module = earlier.unpack(tmp_path, "HEAD") / "plugins" / "module_utils" / "_shared" / "__init__.py"
    module.write_text(f"{module.read_text(encoding='utf-8')}# So that this is another archive.\n", encoding="utf-8")

    def play(name: str) -> None:
        more = ("--limit", "a")
        run = ansible.play(ready.lab.prefix, f"trueip.l4proxy.{name}", [INVENTORY], *more, collections=tmp_path)
        assert (run.status, list(run.changed)) == (0, ["a"]), run.output

    for name in ("site", "roll_back"):
        before = ready.sh("a", "readlink /usr/local/lib/l4proxy/l4proxy.pyz")
        disturb(ready, report, streams, f"{name} with another archive on A", lambda name=name: play(name))
        assert ready.sh("a", "readlink /usr/local/lib/l4proxy/l4proxy.pyz") != before


def test_a_flush_of_all_of_nftables_is_repaired_and_ends_connections_that_send_meanwhile(ready, streams, report):
    """As the architecture page says. Others go on, with counters that are as old as the last that were published."""
    repairs = ready.state("a")["repairs"]["by_kind"].get("services", 0)
    state, _noticed = measure(
        ready,
        report,
        "nft flush ruleset on A",
        "a",
        lambda: ready.sh("a", "nft flush ruleset"),
        streams=streams,
        within=1.0,
    )
    assert state["repairs"]["by_kind"]["services"] > repairs
