# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Admission of TCP clients: PROXY headers, allow and deny, limits, ranges of ports, floods."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop import sockets
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp import proxy_protocol

from tests.support import tcp
from tests.support.forwarding import Forwarder, make_config, make_service
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("servers")
PROXIED, SENDING, DENIED, ALLOWED, PAUSE, REFUSE, EACH, RATE, RANGE, _END, _LAST, HIDDEN, GREETED = range(7300, 7313)
OLD = 7450  # and the next two: services of an old generation
BEYOND = {"ipv4": "203.0.113.77", "ipv6": "2001:db8:77::7"}  # clients in the headers of the trusted proxy
HELD = LISTENER = 9100  # a port on b where connections stay open


@pytest.fixture(scope="module")
def servers(lab):
    with tcp.answering(lab, ["b"], 9000), tcp.answering(lab, ["b"], 9001), tcp.answering(lab, ["b"], 9002):
        yield


def document(lab):
    client = [f"{lab['client'].ipv4}/32", f"{lab['client'].ipv6}/128"]

    def one(name, port, backend_port=9000, **options):
        return make_service(lab, name, port, backend_port, backends=["b"], **options)

    ranged = one("range", f"{RANGE}-{RANGE + 2}", "9000-9002")
    sending = [one("v1", SENDING, HELD), one("v2", SENDING + 100, HELD)]
    for version, service in zip(("v1", "v2"), sending):
        service["backends"][0]["send_proxy"] = version
        service["accept_proxy"] = [f"{lab['b'].ipv4}/32"]
    return make_config(
        one("proxied", PROXIED, accept_proxy=client, proxy_timeout=0.5, deny=["203.0.113.99/32"]),
        one("hidden", HIDDEN, accept_proxy=client, deny=["203.0.113.99/32"], source_fallback="own"),
        one("greeted", GREETED, HELD, accept_proxy=client),
        one("denied", DENIED, deny=client),
        one("allowed", ALLOWED, allow=["192.0.2.0/24", "2001:db8:ffff::/48"]),
        one("pause", PAUSE, HELD, limits={"connections": 2}),
        one("refuse", REFUSE, HELD, limits={"connections": 2, "at_limit": "refuse"}),
        one("each", EACH, HELD, limits={"connections_per_client": 2}),
        one("rate", RATE, limits={"rate_per_client": 3}),
        ranged,
        *sending,
    )


def header(lab, family, version="v2", source=None):
    return proxy_protocol.build(version, source or BEYOND[family], 4711, getattr(lab["a"], family), 80)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("cut", [None, 1, 7])
def test_the_client_in_the_header_of_a_trusted_proxy_is_spoofed(lab, forwarder, new_lines, family, version, cut):
    """The header comes in one piece or in several, also over a connection of the other family."""
    data = header(lab, family, version)
    with tcp.connect(lab, lab["a"].ipv4 if cut == 1 else getattr(lab["a"], family), PROXIED) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(data), cut or len(data)):
            sock.sendall(data[start : start + (cut or len(data))])
        assert tcp.receive_all(sock).decode().split()[0] == BEYOND[family]
    (line,) = new_lines(1)
    assert (line["client"], line["client_port"], line["source"]) == (BEYOND[family], 4711, BEYOND[family])
    assert line["via"] in (lab["client"].ipv4, lab["client"].ipv6)
    assert line["bytes_to_backend"] == 0, "the header is not the backend's"


V2_START = b"\r\n\r\n\0\r\nQUIT\n\x21"
NOBODY = {
    "v1 UNKNOWN": b"PROXY UNKNOWN\r\n",
    "v1 UNKNOWN with addresses": b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n",
    "v2 LOCAL": b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    "v2 of unix sockets": V2_START + b"\x31\x00\xd8" + b"/".ljust(216, b"x"),
    "v2 of no family that exists": V2_START + b"\xf1\x00\x03abc",
}


@pytest.mark.parametrize("data", NOBODY.values(), ids=NOBODY)
def test_with_a_header_without_addresses_the_proxy_is_the_client(lab, forwarder, family, data):
    with tcp.connect(lab, getattr(lab["a"], family), PROXIED) as sock:
        sock.sendall(data)
        assert tcp.receive_all(sock).decode().split()[0] == getattr(lab["client"], family)


def test_a_header_is_not_expected_from_untrusted_clients(lab, forwarder, new_lines, family):
    with tcp.connect(lab, getattr(lab["a"], family), PROXIED, host="d") as sock:
        assert tcp.receive_all(sock).decode().split()[0] == getattr(lab["d"], family)  # without waiting for a header
    assert "via" not in new_lines(1)[0]


TEST_GREETINGS = [
    (b"GET / HTTP/1.0\r\n\r\n", False, "not a PROXY header: it does not begin like version 1 or 2"),
    (b"PROXY TCP4 1.2.3.4", True, "the connection ended before its PROXY header was complete"),
    (b"", True, "the connection ended before its PROXY header was complete"),
    (b"PROXY TCP4 1.2.3.4", False, "no PROXY header within 0.5 s"),
    (b"PROXY " + b"x" * 200, False, "not a PROXY header: no end of line within 107 bytes"),
    (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", False, "not a PROXY header: a header of 65551 bytes is longer than"),
    (proxy_protocol.build("v2", "127.0.0.1", 1, "198.18.0.11", 80), False, "client address is loopback"),
    (proxy_protocol.build("v2", "203.0.113.99", 1, "198.18.0.11", 80), False, "client address is denied"),
]


@pytest.mark.ipv4_only
@pytest.mark.parametrize(("data", "ends", "reason"), TEST_GREETINGS)
def test_a_trusted_proxy_with_a_bad_header_is_refused(lab, forwarder, new_lines, data, ends, reason):
    others = {"client address is loopback": "never_spoofed", "client address is denied": "denied"}
    cause = others.get(reason, "bad_header")
    before = refused(forwarder, cause)
    assert ended_by_reset(lab, PROXIED, data, ends)
    (line,) = new_lines(1)
    assert line["ended"].startswith(reason)
    assert (line["attempts"], line["source"]) == (0, None)
    eventually(lambda: refused(forwarder, cause) == before + 1, "it is counted by its cause", forwarder.show)


def refused(forwarder, cause):
    return sum(service[f"refused_{cause}"] for service in forwarder.status()["services"])


@pytest.mark.ipv4_only
@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("destination", ["::ffff:198.18.0.11", "2001:db8::11"])
def test_an_ipv4_mapped_address_in_a_header_is_the_ipv4_client(lab, forwarder, new_lines, version, destination):
    """In allow and deny, in the log and as the source, with and without source_fallback."""

    def named(address):
        return proxy_protocol.build(version, f"::ffff:{address}", 4711, destination, 80)

    for port in (PROXIED, HIDDEN):
        with tcp.connect(lab, lab["a"].ipv4, port) as sock:
            sock.sendall(named("203.0.113.77"))
            assert tcp.receive_all(sock).decode().split()[0] == "203.0.113.77"
        assert ended_by_reset(lab, port, named("203.0.113.99"))
    lines = new_lines(4)
    for line in lines[::2]:
        assert (line["client"], line["source"], line["source_step"]) == ("203.0.113.77", "203.0.113.77", "any")
    assert [line["ended"] for line in lines[1::2]] == ["client address is denied"] * 2


@pytest.mark.parametrize("stopped", [False, True], ids=["as it comes", "all at once"])
@pytest.mark.parametrize("before", [b"", b"before "], ids=["directly", "after data"])
def test_urgent_data_after_a_header_stays_urgent(lab, forwarder, listener, family, before, stopped):
    (worker,) = forwarder.workers()
    if stopped:  # the worker finds everything that has arrived
        os.kill(worker, signal.SIGSTOP)
    try:
        client = tcp.connect(lab, getattr(lab["a"], family), GREETED)
        client.sendall(header(lab, family) + before)
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b"after it")
    finally:
        os.kill(worker, signal.SIGCONT)
    with client, tcp.accept(listener) as server:
        client.shutdown(socket.SHUT_WR)
        assert tcp.receive_all(server) == before + b"after it", "the byte is beside the stream"


@pytest.mark.ipv4_only
@pytest.mark.parametrize("address", ["198.18.0.255", "255.255.255.255", "0.1.2.3"])
def test_a_broadcast_address_is_never_spoofed(lab, forwarder, new_lines, address):
    """The kernel would send from the proxy's own address, while the log would show the client's."""
    data = proxy_protocol.build("v2", address, 4711, "198.18.0.11", 80)
    assert ended_by_reset(lab, PROXIED, data)
    with tcp.connect(lab, lab["a"].ipv4, HIDDEN) as sock:
        sock.sendall(data)
        assert tcp.receive_all(sock).decode().split()[0] == lab["a"].ipv4
    refused, hidden = new_lines(2)
    assert refused["ended"] in ("client address is broadcast", "client address is in 0.0.0.0/8")
    assert (refused["attempts"], refused["source"]) == (0, None)
    assert (hidden["source"], hidden["source_step"]) == (lab["a"].ipv4, "own")


@pytest.mark.ipv4_only
@pytest.mark.parametrize(
    ("address", "seen"), [("198.18.0.255", "198.18.0.11"), ("198.18.0.0", "198.18.0.0"), ("198.18.0.99", "198.18.0.99")]
)
def test_the_kernel_replaces_a_broadcast_source_address(lab, servers, address, seen):
    """The lowest address of a subnet is an ordinary one since Linux 5.14; ``is_broadcast`` asks the kernel."""
    options = sockets.transparent_options(socket.AF_INET)
    with lab["a"].inside():
        assert sockets.is_broadcast(address) == (address != seen)
        sock = sockets.begin_connect(socket.AF_INET, options, (address, 0), (lab["b"].ipv4, 9000))
        assert sock.getsockname()[0] == seen
        sock.close()
        if address != seen:
            with pytest.raises(OSError, match="broadcast address of this host"):
                sockets.transparent_socket(socket.AF_INET, address)
            lab["a"].run(["ip", "route", "add", "prohibit", "203.0.113.200"])
            assert not sockets.is_broadcast("203.0.113.200")
            lab["a"].run(["ip", "route", "del", "prohibit", "203.0.113.200"])


def ended_by_reset(lab, port, data=b"", shut=False, address=None):
    try:
        with tcp.connect(lab, address or lab["a"].ipv4, port) as sock:
            sock.sendall(data)
            if shut:
                sock.shutdown(socket.SHUT_WR)
            return sock.recv(1) != b"" and False
    except (ConnectionResetError, BrokenPipeError):
        return True


@pytest.mark.parametrize(("version", "port"), [("v1", SENDING), ("v2", SENDING + 100)])
def test_send_proxy_sends_the_clients_address_to_the_backend(lab, forwarder, listener, version, port, family):
    with tcp.connect(lab, getattr(lab["a"], family), port) as client, tcp.accept(listener) as server:
        client.sendall(b"hello")
        data = b""
        while not data.endswith(b"hello"):
            part = server.recv(1000)
            assert part, data
            data += part
        found = proxy_protocol.parse(data)
        assert data[found.length :] == b"hello"
        assert (found.source, found.source_port) == client.getsockname()[:2]
        assert (found.destination, found.destination_port) == (getattr(lab["a"], family), port)
        assert server.getpeername()[0] == getattr(lab["client"], family)


@pytest.mark.parametrize(
    ("port", "reason"), [(DENIED, "client address is denied"), (ALLOWED, "client address is not allowed")]
)
def test_clients_of_denied_networks_are_refused_and_others_are_served(lab, forwarder, new_lines, port, reason, family):
    assert ended_by_reset(lab, port, address=getattr(lab["a"], family))
    assert new_lines(1)[0]["ended"] == reason
    with tcp.connect(lab, getattr(lab["a"], family), DENIED, host="d") as sock:  # the control
        assert tcp.receive_all(sock).decode().split()[0] == getattr(lab["d"], family)


def test_at_the_service_limit_clients_wait_until_a_connection_ends(lab, forwarder, listener, family):
    held = [tcp.pair(lab, listener, PAUSE) for _connection in range(2)]
    with tcp.connect(lab, getattr(lab["a"], family), PAUSE) as waiting:
        eventually(lambda: forwarder.log("accept paused"), "the pause is logged")
        assert forwarder.log("accept paused")[-1]["service"] == "pause"
        listener.settimeout(0.5)
        with pytest.raises(TimeoutError):
            listener.accept()
        listener.settimeout(PATIENCE)
        assert ended_by_reset(lab, DENIED), "other services go on"
        for sock in held[0]:
            sock.close()
        with tcp.accept(listener) as server:
            waiting.sendall(b"at last")
            assert server.recv(100) == b"at last"
    for sock in held[1]:
        sock.close()


@pytest.mark.parametrize(
    ("port", "reason"),
    [(REFUSE, "connection limit of the service"), (EACH, "connection limit of the client")],
)
def test_with_at_limit_refuse_the_next_client_is_refused(lab, forwarder, listener, new_lines, port, reason, family):
    held = [tcp.pair(lab, listener, port) for _connection in range(2)]
    assert ended_by_reset(lab, port, address=getattr(lab["a"], family))
    assert new_lines(1)[0]["ended"] == reason
    if port == EACH:
        with tcp.connect(lab, getattr(lab["a"], family), port, host="router"), tcp.accept(listener):
            pass  # another client has a limit of its own
    for sock in held[0]:
        sock.close()
    new_lines(2)
    for sock in (*held[1], *tcp.pair(lab, listener, port)):
        sock.close()


def test_a_client_above_its_rate_is_refused_and_others_are_served(lab, forwarder, new_lines, family):
    begun = time.monotonic()
    for _connection in range(12):
        ended_by_reset(lab, RATE, address=getattr(lab["a"], family))
    seconds = time.monotonic() - begun
    ends = Counter(line["ended"] for line in new_lines(12))
    admitted = 12 - ends["rate limit of the client"]
    assert 3 <= admitted <= 3 + 3 * seconds + 1
    with tcp.connect(lab, getattr(lab["a"], family), RATE, host="router") as sock:
        assert tcp.receive_all(sock)


@pytest.mark.parametrize("offset", range(3))
def test_each_port_of_a_range_leads_to_its_backend_port(lab, forwarder, new_lines, offset, family):
    """Ports 9000 to 9002 answer; if one refuses, only its port of the range is reset."""
    address = getattr(lab["a"], family)
    with tcp.connect(lab, address, RANGE + offset) as sock:
        assert tcp.receive_all(sock)
    (line,) = new_lines(1)
    assert line["listener"] == f"{'[::]' if family == 'ipv6' else '0.0.0.0'}:{RANGE + offset}"
    with tcp.refusing(lab, "b", 9000 + offset):
        assert ended_by_reset(lab, RANGE + offset, address=address)


def test_connections_in_an_old_generation_count_for_all_limits_of_new_ones(lab, listener, family):
    def config(workers):
        limits = {"each": {"connections_per_client": 1}, "all": {"connections": 1, "at_limit": "refuse"}, "backend": {}}
        services = [
            make_service(lab, name, OLD + number, HELD, backends=["b"], limits=limits[name])
            for number, name in enumerate(limits)
        ]
        services[2]["backends"][0]["max_connections"] = 1
        return make_config(*services, workers=workers)

    def admitted(port):
        with tcp.connect(lab, getattr(lab["a"], family), port) as sock, tcp.accept(listener) as server:
            server.sendall(b"!")
            return sock.recv(1) == b"!"

    def is_refused(port):
        try:
            with tcp.connect(lab, getattr(lab["a"], family), port) as sock:
                return not sock.recv(1)
        except ConnectionResetError:
            return True

    ports = [OLD + number for number in range(3)]
    with Forwarder(lab, config(1)) as forwarder:
        old = [tcp.pair(lab, listener, port) for port in ports]
        forwarder.configure(config(2))
        assert forwarder.reload().returncode == 0
        assert [is_refused(port) for port in ports] == [True] * 3
        assert forwarder.ask("kill", generation=1)["ended"] == 3
        eventually(lambda: not forwarder.status()["old_generations"], "the old workers end", forwarder.show)
        eventually(lambda: forwarder.status()["services"][0]["sessions"] == 0, "they are counted no more")
        time.sleep(1.1)  # what old generations have is published once a second
        assert [admitted(port) for port in ports] == [True] * 3
        for end in (end for pair in old for end in pair):
            end.close()
