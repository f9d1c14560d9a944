# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The namespace lab itself: it connects what the topology says, and leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab import topology, wiring
from tests.lab.netns import LabError, NamespaceLab
from tests.support.waiting import eventually

PREFIX = f"klab{os.getpid()}"


def leftovers() -> list[str]:
    links = wiring.run(["ip", "-o", "link"]).stdout.splitlines()
    return [
        *wiring.namespaces(PREFIX),
        *[line for line in links if "veth" in line or "br-inside" in line],
        *map(str, Path("/tmp").glob(f"l4proxy-lab-{PREFIX}-*")),
    ]


@pytest.fixture(scope="module")
def lab():
    with NamespaceLab(PREFIX, ["client", "router", "a", "b"]) as raised:
        yield raised


@pytest.fixture(scope="module")
def server(lab):
    return lab.nginx("b", ports=[8080, 8081])


@pytest.mark.parametrize("url", ["http://198.18.0.21:8080/", "http://[2001:db8::21]:8081/"])
def test_the_client_reaches_b_through_the_router(lab, server, url):
    seen = len(server.requests())
    assert lab["client"].run(["curl", "-sS", "--max-time", "20", url]).stdout == "b\n"
    line = server.wait_requests(seen + 1)[-1]
    assert line.split()[0] == (lab["client"].ipv6 if "[" in url else lab["client"].ipv4)


@pytest.mark.parametrize(("family", "target"), [("-4", "198.18.0.21"), ("-6", "2001:db8::21")])
def test_the_path_is_client_router_b(lab, family, target):
    lab["router"].run(["ping", family, "-c1", "-W10", target])
    assert f"dev {lab['router'].on('inside').dev}" in lab["router"].run(["ip", "route", "get", target]).stdout
    via = lab["router"].on("outside")
    assert (via.ipv4 if family == "-4" else via.ipv6) in lab["client"].run(["ip", "route", "get", target]).stdout


def test_macs_and_devices_match_the_topology(lab):
    link = lab["a"].run(["ip", "-o", "link", "show", lab["a"].dev]).stdout
    assert (lab["a"].dev, lab["a"].mac) == ("eth0", "02:00:00:00:00:11")
    assert lab["a"].mac in link


def test_no_address_is_tentative(lab):
    assert lab["a"].run(["ip", "-6", "addr", "show", "tentative"]).stdout == ""


def test_inside_moves_the_thread_into_the_namespace_and_back(lab):
    home = os.readlink("/proc/thread-self/ns/net")
    with lab["a"].inside():
        assert os.readlink("/proc/thread-self/ns/net") != home
        assert lab["a"].ipv4 in wiring.run(["ip", "addr"]).stdout
    assert os.readlink("/proc/thread-self/ns/net") == home


def test_a_sysctl_stays_on_its_host(lab):
    lab["a"].sysctl("net.ipv4.conf.all.rp_filter", "1")
    assert lab["a"].run(["cat", "/proc/sys/net/ipv4/conf/all/rp_filter"]).stdout == "1\n"
    assert lab["b"].run(["cat", "/proc/sys/net/ipv4/conf/all/rp_filter"]).stdout == "0\n"


def test_a_failed_command_shows_its_output(lab):
    with pytest.raises(wiring.CommandFailed, match="does not exist"):
        lab["a"].run(["ip", "link", "show", "nowhere0"])


def test_a_prefix_is_for_one_lab_at_a_time(lab):
    with pytest.raises(LabError, match=f"prefix {PREFIX} is up"):
        NamespaceLab(PREFIX, ["a"]).__enter__()


class TestNothingRemains:
    """With a prefix of its own, because the module's lab is still up."""

    @pytest.fixture(autouse=True)
    def own_prefix(self, monkeypatch):
        monkeypatch.setattr(f"{__name__}.PREFIX", f"{PREFIX}x")

    def test_nothing_remains_after_an_exception_with_processes_running(self):
        pids = []
        with pytest.raises(ZeroDivisionError):
            fail_in_a_busy_lab(pids)
        assert not leftovers()
        for pid in pids:
            wait_for_the_end_of(pid)

    def test_nothing_remains_of_a_lab_that_was_killed(self):
        wiring.ip_batch([f"netns add {PREFIX}-a", f"netns add {PREFIX}-d"])
        with NamespaceLab(PREFIX, ["a"]) as lab:
            assert wiring.namespaces(PREFIX) == [lab["a"].netns, lab.switch]
        assert not leftovers()


def fail_in_a_busy_lab(pids: list[int]) -> None:
    with NamespaceLab(PREFIX, ["client", "router", "a", "b"]) as lab:
        lab.nginx("b")
        pids.append(lab["a"].spawn(["sleep", "1000"]).pid)
        # A process that escapes from its parent: only the sweep of the namespace finds it.
        lab["a"].run(["sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $! > pid"], cwd=lab.tmp)
        pids.append(int((lab.tmp / "pid").read_text()))
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
        assert leftovers()
        raise ZeroDivisionError


def wait_for_the_end_of(pid: int) -> None:
    """A killed orphan may stay a zombie for a while."""
    stat = Path(f"/proc/{pid}/stat")
    eventually(lambda: not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z", f"{pid} ends")


def test_a_second_leg_has_its_own_network_and_no_default_route():
    with NamespaceLab(f"{PREFIX}y", ["router", "b", "c"], {"b": ["inside", "side"], "c": ["side"]}) as lab:
        assert (lab["b"].on("side").dev, lab["b"].on("side").mac) == ("eth1", "02:00:00:00:02:21")
        lab["b"].run(["ping", "-c1", "-W10", lab["c"].ipv4])
        assert lab["c"].run(["ip", "route", "show", "default"]).stdout == ""


def test_all_unknown_names_are_reported():
    with pytest.raises(topology.TopologyError) as caught:
        topology.load().select(["a", "x"], {"a": ["nowhere"], "q": []})
    assert [error.split(" (")[0] for error in caught.value.errors] == [
        "unknown host x",
        "networks of q: that host is not among the chosen ones",
        "networks of a: unknown network nowhere",
    ]
