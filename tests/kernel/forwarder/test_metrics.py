# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics and the status page: what they contain, and reloads and ports in use."""

from __future__ import annotations

import contextlib
import json
import socket

import pytest

from tests.support import tcp, udp
from tests.support.addresses import FAMILIES, family_of
from tests.support.forwarding import Forwarder, make_config, make_service
from tests.support.waiting import PATIENCE, eventually

RAW, METRICS, ECHO = 7000, 9110, 7002


def document(lab):
    raw = make_service(lab, "raw", RAW, 9000, backends=["b"], idle_timeout=8)  # sampled each second
    echo = make_service(lab, "echo", ECHO, 9000, backends=["d"], protocol="udp", idle_timeout=1)
    return make_config(raw, echo, workers=2, metrics={"listen": f"127.0.0.1:{METRICS}"})


def http(lab, request):
    with lab["a"].inside():
        sock = socket.create_connection(("127.0.0.1", METRICS), timeout=PATIENCE)
    with sock:
        sock.sendall(request)
        head, _blank, body = tcp.receive_all(sock).partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0].decode(), body.decode()


@pytest.mark.ipv4_only
def test_metrics_and_status_page(lab, forwarder, listener):
    for end in tcp.pair(lab, listener, RAW):
        end.close()
    eventually(lambda: forwarder.status()["services"][0]["sessions"] == 0, "it is over")
    status, text = http(lab, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == "HTTP/1.0 200 OK"
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    total = int(samples['l4proxy_backend_connections_total{service="raw",backend="b"}'])
    assert total >= 1
    assert int(samples['l4proxy_connect_seconds_bucket{service="raw",backend="b",family="ipv4",le="+Inf"}']) == total
    assert float(samples['l4proxy_connect_seconds_sum{service="raw",backend="b",family="ipv4"}']) > 0
    assert samples['l4proxy_worker_up{slot="1"}'] == "1"
    declared = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(declared) == len(set(declared))
    status, page = http(lab, b"GET / HTTP/1.0\r\n\r\n")
    assert "<h2>raw</h2>" in page
    assert http(lab, b"GET /x HTTP/1.0\r\n\r\n")[0] == "HTTP/1.0 404 Not Found"
    assert http(lab, b"POST / HTTP/1.0\r\n\r\n")[0] == "HTTP/1.0 405 Method Not Allowed"
    assert http(lab, b"nonsense\r\n\r\n")[0] == "HTTP/1.0 400 Bad Request"
    assert http(lab, b"GET /" + b"x" * 20_000)[0] == "HTTP/1.0 400 Too Long"


def test_no_page_has_the_address_of_a_client_which_the_admin_socket_has(lab, forwarder, listener, udp_servers, family):
    address, to = getattr(lab["client"], family), (getattr(lab["a"], family), ECHO)
    with tcp.connection(lab, listener, RAW), udp.client(lab, to[0]) as sock:
        udp.who(sock, to)
        assert {one["client"] for one in forwarder.ask("sessions", client=address)["sessions"]} == {address}
        assert {one["service"] for one in forwarder.ask("clients", client=address)["clients"]} == {"raw", "echo"}
        for path in ("/", "/status.json", "/metrics"):
            status, text = http(lab, f"GET {path} HTTP/1.0\r\n\r\n".encode())
            assert status == "HTTP/1.0 200 OK"
            assert address not in text


def test_metrics_of_a_udp_service(lab, forwarder, udp_servers, family):
    to = (getattr(lab["a"], family), ECHO)

    def numbers():
        text = http(lab, b"GET /metrics HTTP/1.0\r\n\r\n")[1]
        samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        names = ("connections", "sent_bytes", "received_bytes", "sent_datagrams", "received_datagrams")
        found = [int(samples[f'l4proxy_backend_{name}_total{{service="echo",backend="d"}}']) for name in names]
        latency = f'l4proxy_connect_seconds_count{{service="echo",backend="d",family="{family}"}}'
        return [*found, int(samples[latency])]

    before = numbers()
    with udp.client(lab, to[0]) as sock:
        for _datagram in range(3):
            udp.exchange(sock, b"x" * 1000, to)
        eventually(lambda: forwarder.status()["services"][1]["sessions"] == 0, "the session has ended", forwarder.show)
    sessions, sent, received, *datagrams, first_answers = (after - one for after, one in zip(numbers(), before))
    assert (sessions, first_answers) == (1, 1)
    assert sent >= 3000
    assert received >= 3000
    assert min(datagrams) >= 3


LOSS = """table inet loss {
  chain in { type filter hook input priority 0; tcp dport 9000 meta length > 150 numgen inc mod 2 0 drop; }
}
"""


class Samples:
    """A connection of each family to the same backend, and what the metrics say of its path."""

    def __init__(self, lab, stack):
        self._lab = lab
        self._pairs = []
        for family in FAMILIES:
            with tcp.listen(lab, "b", 9000, family) as listener:
                self._pairs.append(stack.enter_context(tcp.connection(lab, listener, RAW)))

    def after_a_piece(self, acknowledge=1):
        """Send something; return ([seconds of a round trip in each family], [segments sent again])."""
        for client, backend in self._pairs:
            backend.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, acknowledge)
            client.sendall(bytes(200))
            assert len(backend.recv(200, socket.MSG_WAITALL)) == 200
        text = http(self._lab, b"GET /metrics HTTP/1.0\r\n\r\n")[1]
        samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        targets = [f'{{service="raw",backend="b",family="{family}"}}' for family in FAMILIES]
        round_trips = [float(samples.get(f"l4proxy_rtt_seconds{target}", 0)) for target in targets]
        return round_trips, [int(samples[f"l4proxy_retransmitted_segments_total{target}"]) for target in targets]


def test_round_trips_and_retransmissions_of_a_backend(lab, forwarder):
    """A backend that acknowledges late is as far away as one behind a slow line."""
    with contextlib.ExitStack() as stack:
        samples = Samples(lab, stack)
        eventually(lambda: min(samples.after_a_piece()[0]) > 0, "there are samples", forwarder.show)
        assert max(samples.after_a_piece()[0]) < 0.005
        eventually(
            lambda: min(samples.after_a_piece(0)[0]) > 0.02, "ACKs are 40 ms late", forwarder.show, interval=0.05
        )
        assert samples.after_a_piece()[1] == [0, 0]
        lab["b"].run(["nft", "-f", "-"], input=LOSS)
        stack.callback(lab["b"].run, ["nft", "delete", "table", "inet", "loss"])
        eventually(lambda: min(samples.after_a_piece()[1]) > 0, "lost segments are sent again", forwarder.show)


def many_services(lab, **options):
    """1,000 services with three backends each, in both families: 14 MB of metrics."""
    services = [make_service(lab, f"s{number}", 20000 + number, 9) for number in range(1000)]
    return make_config(*services, **options)


@pytest.fixture(scope="module", params=FAMILIES)
def many(lab, request):
    """(forwarder with 1,000 services, the address of its metrics)"""
    address = {"ipv4": "127.0.0.1", "ipv6": "::1"}[request.param]
    listen = f"[{address}]:9112" if ":" in address else f"{address}:9112"
    with Forwarder(lab, many_services(lab, metrics={"listen": listen})) as forwarder:
        yield forwarder, address


def scraper(lab, address, buffer=None):
    """A connection to the metrics of ``many`` that has sent a request."""
    with lab["a"].inside():
        sock = socket.socket(family_of(address))
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.settimeout(PATIENCE)
    sock.connect((address, 9112))
    sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    return sock


def test_metrics_of_a_thousand_services_are_complete(lab, many):
    forwarder, address = many
    with scraper(lab, address) as sock:
        head, _blank, body = tcp.receive_all(sock).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK")
    lines = body.decode().splitlines()
    assert sum(line.startswith("l4proxy_backend_weight{") for line in lines) == 3000
    assert sum(line.startswith("l4proxy_connect_seconds_count{") for line in lines) == 6000
    assert lines[-1].startswith('l4proxy_connect_seconds_count{service="s999",backend="d",family="ipv6"}')
    assert len(forwarder.status()["services"]) == 1000
    assert forwarder.reload().returncode == 0


@pytest.mark.parametrize(("key", "said"), [("workers", "by new processes"), ("drain_timeout", "in place")])
def test_a_reload_resets_the_connection_of_a_metrics_response(lab, many, key, said):
    """The response is made while it is read, from memory that a reload replaces."""
    forwarder, address = many
    config = json.loads(forwarder.config.read_text(encoding="utf-8"))
    forwarder.configure({**config, key: config.get(key, 1) + 1})
    with scraper(lab, address, buffer=4096) as slow:
        slow.recv(1)
        assert said in forwarder.reload().stdout
        with pytest.raises(ConnectionResetError):
            tcp.receive_all(slow)
    assert not forwarder.log("defect")


@pytest.mark.ipv4_only
def test_a_reload_fails_if_the_metrics_port_is_taken(lab, forwarder):
    document = json.loads(forwarder.config.read_text(encoding="utf-8"))
    with lab["a"].inside(), socket.create_server(("127.0.0.1", 9111)):
        forwarder.configure({**document, "metrics": {"listen": "127.0.0.1:9111"}})
        outcome = forwarder.reload()
    forwarder.configure(document)
    assert outcome.returncode == 1
    assert "metrics: cannot listen on 127.0.0.1:9111: EADDRINUSE" in outcome.stderr
    assert http(lab, b"GET /metrics HTTP/1.0\r\n\r\n")[0] == "HTTP/1.0 200 OK"
