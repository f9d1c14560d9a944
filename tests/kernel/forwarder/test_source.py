# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The source address and port that backends see: port slices, source_port keep, and fallbacks."""

from __future__ import annotations

import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admission import source_address
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Listener, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.settings import PortRange
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop import sockets
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp import proxy_protocol

from tests.support import tcp
from tests.support.forwarding import BACKENDS, Forwarder, make_config, make_service
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.usefixtures("servers")
ANY, KEEP, HIDE, ALL, FOREIGN, INTRODUCED = 7100, 7101, 7102, 7103, 7104, 7105
SLICE = PortRange(40000, 40099)


@pytest.fixture(scope="module")
def servers(lab):
    """Port 9000 of every backend answers with the client's address and port."""
    with tcp.answering(lab, BACKENDS, 9000):
        yield


def document(lab):
    foreign = make_service(lab, "foreign", FOREIGN, 9000, backends=["b"], source_fallback="own")
    del foreign["backends"][0]["ipv6"]
    trusted = [f"{lab['client'].ipv4}/32", f"{lab['client'].ipv6}/128"]
    return make_config(
        make_service(lab, "any", ANY, 9000, backends=["b"]),
        make_service(lab, "keep", KEEP, 9000, backends=["b"], source_port="keep"),
        make_service(lab, "hide", HIDE, 9000, backends=["b"], source_fallback="own"),
        make_service(lab, "all", ALL, 9000),
        make_service(lab, "introduced", INTRODUCED, 9000, backends=["b"], source_port="keep", accept_proxy=trusted),
        foreign,
        source_ports={"first": SLICE.first, "last": SLICE.last},
    )


def seen(lab, family, port, host="client", source_port=0):
    """The client's (address, port) as the backend sees it, and the client's own port."""
    with lab[host].inside():
        kind = socket.AF_INET6 if family == "ipv6" else socket.AF_INET
        sock = socket.socket(kind, socket.SOCK_STREAM)
    with sock:
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", source_port))
        sock.connect((getattr(lab["a"], family), port))
        address, number = tcp.receive_all(sock).decode().split()
        return (address, int(number)), sock.getsockname()[1]


def test_source_port_any_is_within_the_slice(lab, forwarder, family):
    ports = {seen(lab, family, ANY)[0][1] for _connection in range(30)}
    assert ports <= set(range(SLICE.first, SLICE.last + 1))
    assert len(ports) > 5


@pytest.mark.parametrize("by_kernel", [True, False])
def test_every_port_of_the_slice_can_be_used_once_for_each_backend(lab, servers, family, by_kernel):
    """Every port of a slice can be used at once for a backend, none twice; the next connection fails."""
    address = getattr(lab["b"], family)
    client = "203.0.113.9" if family == "ipv4" else "2001:db8:1::99"
    first = 41000 if by_kernel else 42000  # the other case has left its ports in TIME-WAIT
    small = PortRange(first, first + 63)
    service = Service("web", (Listener("0.0.0.0", 80),), (Backend("b", 9000, ipv4=address),))
    ladder = source_address.SourceAddress(service, source_address.SourcePorts(small, by_kernel), lambda _name: None)
    with lab["a"].inside():
        held = [ladder.connect((client, 5000), (address, 9000)) for _connection in range(64)]
        assert {sock.getsockname()[1] for sock, _step in held} == set(range(small.first, small.last + 1))
        with pytest.raises(OSError, match=r"assign|in use"):
            ladder.connect((client, 5000), (address, 9000))
        other, step = ladder.connect((client, 5000), (address, 9001))
        assert step == "any", "a port is taken for one backend only"
    for sock in (other, *(sock for sock, _step in held)):
        sock.close()


def until_the_client_closes(sock, _peer):
    """Send a byte and close after the client, so that TIME-WAIT is on the proxy."""
    with sock:
        sock.sendall(b"!")
        while sock.recv(100):
            pass


@pytest.mark.parametrize("timestamps", ["1", "0"])
def test_ports_in_time_wait_are_reused(lab, family, timestamps):
    """The control: without timestamps ports in TIME-WAIT are not reused, and the slice is used up."""
    name, count = "net.ipv4.tcp_timestamps", 200
    before = lab["a"].run(["sysctl", "-n", name]).stdout.strip()
    document = make_config(make_service(lab, "short", ANY + 10, 9001, backends=["b"]))
    document["source_ports"] = {"first": 42000 + 100 * int(timestamps), "last": 42063 + 100 * int(timestamps)}
    lab["a"].run(["sysctl", "-w", f"{name}={timestamps}"])
    served = 0
    try:
        with tcp.serving(lab, ["b"], 9001, until_the_client_closes), Forwarder(lab, document) as forwarder:
            for _connection in range(count):
                try:  # the reset may come before connect() returns
                    with tcp.connect(lab, getattr(lab["a"], family), ANY + 10) as sock:
                        served += sock.recv(1) == b"!"
                except ConnectionResetError:
                    break
            ended = {line["ended"] for line in forwarder.connections(served)}
    finally:
        lab["a"].run(["sysctl", "-w", f"{name}={before}"])
    if timestamps == "1":
        assert served == count, ended
    else:
        assert 32 <= served <= 2 * 64, ended


def test_source_port_keep_falls_back_to_any_on_a_collision(lab, forwarder, new_lines, family):
    client = getattr(lab["client"], family)
    (address, port), own = seen(lab, family, KEEP, source_port=23333)
    assert (address, port, own) == (client, 23333, 23333)
    family_of, options = source_address.socket_family_of(client), source_address.sockets.transparent_options
    with lab["a"].inside():
        target = (getattr(lab["b"], family), 9000)
        held = source_address.sockets.begin_connect(family_of, options(family_of, kept=True), (client, 23334), target)
    try:
        (address, port), own = seen(lab, family, KEEP, source_port=23334)
    finally:
        held.close()
    assert (address, own) == (client, 23334)
    assert SLICE.first <= port <= SLICE.last
    assert [line["source_step"] for line in new_lines(2)] == ["kept", "any"]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_header_with_port_0_falls_back_to_any(lab, forwarder, new_lines, family, version):
    source = "203.0.113.77" if family == "ipv4" else "2001:db8:77::7"
    ports = set()
    for _connection in range(20):
        with tcp.connect(lab, getattr(lab["a"], family), INTRODUCED) as sock:
            sock.sendall(proxy_protocol.build(version, source, 0, getattr(lab["a"], family), 80))
            address, port = tcp.receive_all(sock).decode().split()
            assert address == source
            ports.add(int(port))
    assert ports <= set(range(SLICE.first, SLICE.last + 1))
    assert {line["source_step"] for line in new_lines(20)} == {"any"}


def test_a_slice_outside_the_ephemeral_range_works(lab, servers, family):
    """The kernel ignores IP_LOCAL_PORT_RANGE there, so the forwarder tries the ports itself."""
    far = PortRange(10000, 10099)
    services = [make_service(lab, "any", 7301, 9000, backends=["b"])]
    with lab["a"].inside():
        assert sockets.chooses_within(SLICE.first, SLICE.last)
        assert not sockets.chooses_within(far.first, far.last)
    options = {"source_ports": {"first": far.first, "last": far.last}}
    with Forwarder(lab, make_config(*services, **options)):
        ports = {seen(lab, family, 7301)[0][1] for _connection in range(20)}
    assert ports <= set(range(far.first, far.last + 1))


@pytest.mark.parametrize("host", ["a", "b"], ids=["the proxy itself", "the only backend"])
def test_source_fallback_own_serves_clients_that_cannot_be_spoofed(lab, forwarder, new_lines, family, host):
    (address, _port), _own = seen(lab, family, HIDE, host=host)
    assert address == getattr(lab["a"], family)
    (line,) = new_lines(1)
    assert (line["source"], line["source_step"]) == (address, "own")


def test_a_client_that_is_a_backend_is_sent_to_another_backend(lab, forwarder, new_lines, family):
    client = getattr(lab["b"], family)
    assert {seen(lab, family, ALL, host="b")[0][0] for _connection in range(6)} == {client}
    assert {line["backend"] for line in new_lines(6)} == {"c", "d"}


def test_source_fallback_own_serves_ipv6_clients_of_ipv4_backends(lab, forwarder, new_lines):
    assert seen(lab, "ipv4", FOREIGN)[0][0] == lab["client"].ipv4
    assert seen(lab, "ipv6", FOREIGN)[0][0] == lab["a"].ipv4
    assert [line["source"] for line in new_lines(2)] == [lab["client"].ipv4, lab["a"].ipv4]


def test_status_counts_kept_any_and_own_sources(lab, servers, family):
    services = [
        make_service(lab, "keep", 7201, 9000, backends=["b"], source_port="keep"),
        make_service(lab, "hide", 7202, 9000, backends=["b"], source_fallback="own"),
    ]
    with Forwarder(lab, make_config(*services)) as forwarder:
        seen(lab, family, 7201)
        seen(lab, family, 7202)
        seen(lab, family, 7202, host="b")
        forwarder.settled()
        counters = {service["name"]: service for service in forwarder.status()["services"]}
    steps = ("source_kept", "source_any", "source_own", "source_refused")
    assert [counters["keep"][step] for step in steps] == [1, 0, 0, 0]
    assert [counters["hide"][step] for step in steps] == [0, 1, 1, 0]
