# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``l4proxy probe`` with routing set by hand: it succeeds, and names the part that is missing."""

from __future__ import annotations

import json
import sys

import pytest

from tests.lab.netns import CLI, cli_environment

HOSTS = ["client", "router", "a", "b"]

SOURCES = {"ipv4": "198.51.100.11", "ipv6": "2001:db8:ffff::11"}
PORT = 8080

#: Routing set by hand, for both families; the proxy's MAC identifies its connections.
LOCAL_DELIVERY = [
    "ip -4 rule add pref 1100 from 198.18.0.21 ipproto tcp lookup 20100",
    "ip -4 route add local default dev lo table 20100",
    "ip -6 rule add pref 1100 from 2001:db8::21 ipproto tcp lookup 20100",
    "ip -6 route add local default dev lo table 20100",
]
RETURN_PATH = [
    "ip -4 rule add pref 1100 fwmark 11/255 lookup 20111",
    "ip -4 route add default via 198.18.0.11 table 20111",
    "ip -6 rule add pref 1100 fwmark 11/255 lookup 20111",
    "ip -6 route add default via 2001:db8::11 table 20111",
    "nft add table inet hand",
    "nft add chain inet hand input { type filter hook input priority mangle; }",
    "nft add rule inet hand input ether saddr 02:00:00:00:00:11 meta mark set 11 ct mark set 11",
    "nft add chain inet hand output { type route hook output priority mangle; }",
    "nft add rule inet hand output ct mark 11 meta mark set 11",
]


def run_all(host, commands):
    for command in commands:
        host.run(["sh", "-c", command.replace("{", "'{").replace("}", "}'")])


@pytest.fixture(scope="module")
def lab(lab):
    lab.nginx("b", ports=[PORT])
    run_all(lab["a"], LOCAL_DELIVERY)
    run_all(lab["b"], RETURN_PATH)
    return lab


def endpoint(lab, family, port=PORT):
    return f"{lab['b'].ipv4}:{port}" if family == "ipv4" else f"[{lab['b'].ipv6}]:{port}"


def probe(lab, family, port=PORT):
    """Probe b from a; return (exit status, the printed JSON)."""
    arguments = ["probe", "--json", "--timeout", "1.5", "--source", SOURCES[family], endpoint(lab, family, port)]
    done = lab.l4proxy("a", arguments)
    return done.returncode, json.loads(done.stdout)


def retransmits(host):
    counters = host.run(["nstat", "-asz", "TcpRetransSegs"]).stdout.split()
    return int(counters[counters.index("TcpRetransSegs") + 1])


def test_a_working_path_is_established(lab, family):
    status, verdict = probe(lab, family)
    assert (status, verdict["step"]) == (0, "established")
    assert f"established with {endpoint(lab, family)} as {SOURCES[family]}" in verdict["sentence"]
    assert 0 < verdict["seconds"] < 1.5


def test_a_closed_port_is_reported_as_the_server(lab, family):
    status, verdict = probe(lab, family, port=9)
    assert (status, verdict["step"]) == (1, "server")
    assert "nothing listens on that port" in verdict["sentence"]


@pytest.mark.parametrize("missing", ["rule", "route"])
def test_missing_local_delivery_is_reported(lab, family, missing):
    index = {"rule": 0, "route": 1}[missing] + {"ipv4": 0, "ipv6": 2}[family]
    before = retransmits(lab["a"])
    run_all(lab["a"], [LOCAL_DELIVERY[index].replace(" add ", " del ")])
    try:
        status, verdict = probe(lab, family)
    finally:
        run_all(lab["a"], [LOCAL_DELIVERY[index]])
    assert (status, verdict["step"]) == (1, "local_delivery")
    assert f"would not accept replies of {getattr(lab['b'], family)}" in verdict["sentence"]
    assert retransmits(lab["a"]) > before
    assert probe(lab, family)[1]["step"] == "established"


@pytest.mark.parametrize("missing", ["rule", "route", "mark"])
def test_a_missing_return_path_is_reported(lab, family, missing):
    index = {"ipv4": 0, "ipv6": 2}[family] + {"rule": 0, "route": 1, "mark": 0}[missing]
    if missing == "mark":
        take, give = ["nft delete table inet hand"], RETURN_PATH[4:]
    else:
        take, give = [RETURN_PATH[index].replace(" add ", " del ")], [RETURN_PATH[index]]
    before = retransmits(lab["a"])
    run_all(lab["b"], take)
    try:
        status, verdict = probe(lab, family)
    finally:
        run_all(lab["b"], give)
    assert (status, verdict["step"]) == (1, "return_path")
    assert "answers this host's own address" in verdict["sentence"]
    assert retransmits(lab["a"]) > before
    assert probe(lab, family)[1]["step"] == "established"


def test_an_unreachable_backend_is_reported(lab, family):
    lab["b"].run(["ip", "link", "set", "eth0", "down"])
    try:
        status, verdict = probe(lab, family)
    finally:
        lab["b"].run(["ip", "link", "set", "eth0", "up"])
        addresses = [
            f"ip -6 addr replace {lab['b'].ipv6}/64 dev eth0 nodad",
            "ip -6 route replace default via 2001:db8::1",
        ]
        run_all(lab["b"], ["ip -4 route replace default via 198.18.0.1", *addresses])
        run_all(lab["b"], [RETURN_PATH[index].replace(" add ", " replace ") for index in (1, 3)])
    assert (status, verdict["step"]) == (1, "backend")
    assert "does not answer this host at all" in verdict["sentence"]
    assert probe(lab, family)[1]["step"] == "established"


def test_a_missing_capability_is_reported(lab, family):
    command = [sys.executable, "-c", CLI, "probe", "--source", SOURCES[family], endpoint(lab, family)]
    unprivileged = ["setpriv", "--bounding-set=-net_raw,-net_admin", *command]
    done = lab["a"].run(unprivileged, check=False, env=cli_environment())
    assert done.returncode == 1
    assert done.stdout.startswith("capability: ")
    assert "CAP_NET_RAW" in done.stdout


def test_a_source_of_another_family_is_refused(lab):
    done = lab.l4proxy("a", ["probe", "--source", SOURCES["ipv6"], endpoint(lab, "ipv4")])
    assert done.returncode == 2
    assert f"{lab['b'].ipv4} has no address in the family of --source" in done.stderr
