# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connecting: dead and refusing backends, clients that cannot be spoofed, missing capabilities."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support import tcp
from tests.support.forwarding import AS_DAEMON, Forwarder, make_config, make_service
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.usefixtures("servers", "dead")
WEB, REFUSED, ALONE = 80, 7001, 7002


@pytest.fixture(scope="module")
def dead(lab):
    """Drop and count d's packets, as if it were powered off; return a function with the count."""
    ruleset = (
        "table inet dead {\n counter seen { }\n"
        " chain in {\n  type filter hook prerouting priority raw\n  tcp dport 8080 counter name seen drop\n }\n}\n"
    )
    lab["d"].run(["nft", "-f", "-"], input=ruleset)

    def seen():
        listing = lab["d"].run(["nft", "list", "counter", "inet", "dead", "seen"]).stdout
        return int(listing.split("packets")[1].split()[0])

    return seen


def document(lab):
    return make_config(
        make_service(lab, "web", WEB, 8080, connect_timeout=1.0),
        make_service(lab, "refused", REFUSED, 9, backends=["b", "c"]),
        make_service(lab, "alone", ALONE, 8080, backends=["d"], connect_timeout=0.5, retries=5, connect_deadline=1.0),
    )


def reset_by(lab, address, port, host="client"):
    """Whether a connection to a service ends by RST."""
    try:
        with tcp.connect(lab, address, port, host=host) as sock:  # the RST may come before connect() returns
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            sock.recv(1)
    except (ConnectionResetError, BrokenPipeError):
        return True
    return False


def test_every_request_succeeds_in_time_while_one_backend_is_powered_off(
    lab, servers, dead, forwarder, new_lines, family
):
    durations, bodies, tried = [], Counter(), dead()
    for _request in range(30):
        begun = time.monotonic()
        bodies[tcp.get(lab, getattr(lab["a"], family), WEB)] += 1
        durations.append(time.monotonic() - begun)
    assert set(bodies) == {b"b\n", b"c\n"}
    assert sum(bodies.values()) == 30
    assert max(durations) < 1.5
    assert dead() > tried, "d was never tried: this test would prove nothing"
    lines = new_lines(30)
    assert 1 <= sum(line["attempts"] == 2 for line in lines) <= 2, "a backend that failed is skipped for a while"
    assert {line["backend"] for line in lines} == {"b", "c"}
    skipped = next(line for line in forwarder.log("backend skipped") if line["family"] == family)
    assert (skipped["service"], skipped["backend"], skipped["reason"]) == ("web", "d", "no answer within 1 s")


def test_when_every_backend_refuses_the_client_is_reset_and_the_log_says_why(lab, forwarder, new_lines, family):
    assert reset_by(lab, getattr(lab["a"], family), REFUSED)
    (line,) = new_lines(1)
    assert (line["ended"], line["attempts"]) == ("ECONNREFUSED: Connection refused", 2)
    assert (line["source"], line["bytes_to_backend"]) == (None, 0)


def test_a_single_dead_backend_is_tried_once(lab, forwarder, new_lines, family):
    begun = time.monotonic()
    assert reset_by(lab, getattr(lab["a"], family), ALONE)
    assert time.monotonic() - begun < 5
    (line,) = new_lines(1)
    assert (line["ended"], line["attempts"]) == ("no answer within 0.5 s", 1)
    assert 0.5 <= line["duration"] < 1.0


@pytest.mark.parametrize(
    ("host", "address", "port", "reason"),
    [
        ("a", "127.0.0.1", WEB, "client address is loopback"),
        ("a", "::1", WEB, "client address is loopback"),
        ("a", "198.18.0.11", WEB, "client address is the proxy's own"),
        ("a", "2001:db8::11", WEB, "client address is the proxy's own"),
        ("d", "198.18.0.11", ALONE, "client address is the backend's own"),
        ("d", "2001:db8::11", ALONE, "client address is the backend's own"),
    ],
)
def test_a_client_address_that_cannot_be_spoofed_is_refused_with_a_reason(
    lab, servers, forwarder, host, address, port, reason
):
    before = forwarder.settled()
    assert reset_by(lab, address, port, host=host)
    line = forwarder.connections(before + 1)[-1]
    assert (line["ended"], line["attempts"], line["source"]) == (reason, 0, None)


def test_an_ordinary_user_needs_two_capabilities_only(lab, servers):
    other = make_config(make_service(lab, "low", 443, 8080, backends=["b"]))
    with Forwarder(lab, other, wrapper=AS_DAEMON) as forwarder:
        status = Path(f"/proc/{forwarder.workers()[0]}/status").read_text(encoding="ascii")
        assert "Uid:\t65534\t65534" in status
        for address in (lab["a"].ipv4, lab["a"].ipv6):
            assert tcp.get(lab, address, 443) == b"b\n"
        done = forwarder.reload()
        assert done.returncode == 0, done.stderr
        assert tcp.get(lab, lab["a"].ipv4, 443) == b"b\n", "capabilities must outlive the exec of a reload"
    assert servers["b"].clients()[-1] == lab["client"].ipv4


@pytest.mark.ipv4_only
def test_a_missing_cap_net_raw_is_named_in_the_log(lab, servers):
    wrapper = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    other = make_config(make_service(lab, "high", 8443, 8080))
    with Forwarder(lab, other, wrapper=wrapper) as forwarder:
        assert reset_by(lab, lab["a"].ipv4, 8443)
        line = forwarder.connections(1)[0]
    assert line["ended"].startswith("EPERM: CAP_NET_RAW is missing")
    assert line["attempts"] == 1, "no other backend can help"


@pytest.mark.ipv4_only
def test_a_low_port_without_cap_net_bind_service_fails_at_the_start(lab, servers):
    wrapper = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    forwarder = Forwarder(lab, make_config(make_service(lab, "low", 445, 8080)), wrapper=wrapper)
    assert forwarder.process.wait(PATIENCE) == 1
    assert "service low: cannot listen on 0.0.0.0:445: CAP_NET_BIND_SERVICE is missing" in forwarder.show()
