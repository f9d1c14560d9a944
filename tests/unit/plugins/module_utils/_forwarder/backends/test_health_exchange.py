# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a probe sends, and what the pieces of an answer mean."""

from __future__ import annotations

import re
import time

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends import health_exchange
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends.health_exchange import (
    LATER,
    Beginning,
    Exchange,
    Search,
    StatusLine,
    exchanges,
    stopwatch,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_check import HealthCheck
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_exchange import (
    HealthHttp,
    HealthTls,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import probe_results
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.probe_results import (
    CLOSED,
    HTTP_STATUS,
    INCOMPLETE,
    NO_ANSWER,
    NOT_HTTP,
    REGEX_TOO_SLOW,
    UNEXPECTED,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tables import rows


@pytest.fixture(autouse=True)
def new_turn():
    stopwatch.new_turn()


OK = HealthHttp().statuses()
EXPECT, REGEX, STATUS = Beginning(b"SSH-2.0"), Search(re.compile(rb"^220 .*\n"), 30), StatusLine(OK)

# The judge, what the server sends, whether it then closes, and the result.
TEST_ANSWERS = [
    ("the beginning", EXPECT, b"SSH-2.0-x\r\n", False, 0),
    ("a part of it", EXPECT, b"SSH-", False, None),
    ("a part of it, closed", EXPECT, b"SSH-", True, UNEXPECTED),
    ("another beginning", EXPECT, b"SSH-1", False, UNEXPECTED),
    ("nothing, closed", EXPECT, b"", True, CLOSED),
    ("found", REGEX, b"220 a\r\n", False, 0),
    ("not yet found", REGEX, b"220 a", False, None),
    ("not found, closed", REGEX, b"554 a\r\n", True, UNEXPECTED),
    ("not found within", REGEX, b"220 " + b"a" * 26 + b"\n", False, UNEXPECTED),
    ("status", STATUS, b"HTTP/1.1 204 No Content\r\n", False, 0),
    ("status without a reason", STATUS, b"HTTP/1.0 399\r\n", False, 0),
    ("status, closed", STATUS, b"HTTP/1.1 200", True, 0),
    ("bad status", STATUS, b"HTTP/1.1 503 Service Unavailable\r\n", False, HTTP_STATUS + 503),
    ("interim status", STATUS, b"HTTP/1.1 103 Early Hints\r\n", False, HTTP_STATUS + 103),
    ("a part of a status", STATUS, b"HTTP/1.1 20", False, None),
    ("a part of a status, closed", STATUS, b"HTTP/1.1 20", True, NOT_HTTP),
    ("a banner", STATUS, b"SSH", False, NOT_HTTP),
    ("HTTP/2", STATUS, b"HTTP/2 200 \r\n", False, NOT_HTTP),
    ("no status", STATUS, b"HTTP/1.1 2000 x", False, NOT_HTTP),
    ("HTTP/0.9", STATUS, b"<html>", True, NOT_HTTP),
]


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(("judge", "data", "closed", "result"), **rows(TEST_ANSWERS))
def test_an_answer_is_judged_in_any_pieces(judge, data, closed, result, size):
    exchange = Exchange(b"", judge)
    pieces = [data[place : place + size] for place in range(0, len(data), size)] + [b""] * closed
    results = [exchange.received(piece) for piece in pieces]
    assert next((one for one in results if one is not None), None) == result
    assert exchange.expired() == (INCOMPLETE if data else NO_ANSWER)


@given(st.sampled_from([EXPECT, REGEX, STATUS]), st.lists(st.binary(min_size=1, max_size=40), max_size=20))
def test_any_answer_has_a_result_after_a_bounded_number_of_bytes(judge, pieces):
    exchange, results = Exchange(b"", judge), []
    for piece in (*pieces, b""):
        results.append(exchange.received(piece))
        if results[-1] is not None:
            break
        assert sum(map(len, pieces[: len(results)])) < 30, "it waits for no more than it needs"
    assert probe_results.name(results[-1])


# A runaway expression and what it is searched in; the last two would stay in C for seconds with search().
RUNAWAY = [(rb"(a+)+b", b"a" * 40), (rb"(a|a)*b", b"a" * 4096), (rb".*.*x", b"a" * 65536), (rb".*x", b"a" * 65536)]


@pytest.mark.parametrize(("pattern", "data"), RUNAWAY)
def test_a_runaway_expression_ends_and_others_wait_for_the_next_turn(pattern, data):
    exchange, begun = Exchange(b"", Search(re.compile(pattern), 65536)), time.process_time()
    assert exchange.received(data) == REGEX_TOO_SLOW
    assert time.process_time() - begun < 10 * health_exchange.SEARCH_LIMIT
    other = Exchange(b"", REGEX)
    assert (other.received(b"220 a\r\n"), other.expired(), other.new_turn()) == (None, None, None)
    assert Search(re.compile(b"a"), 10)(b"a", True) is LATER
    stopwatch.new_turn()
    assert (other.new_turn(), other.expired()) == (0, INCOMPLETE)


GET = "GET / HTTP/1.1\r\nHost: {}\r\nUser-Agent: l4proxy\r\nAccept: */*\r\nConnection: close\r\n\r\n"
V4, V6 = "198.18.0.21", "2001:db8::21"

# Options of the check, the backend's address and port, and what is sent.
TEST_REQUESTS = [
    ("bytes", {"request": "PING\r\n\xff"}, V4, 6379, "PING\r\n\xff"),
    ("nothing", {"expect": "SSH"}, V4, 22, ""),
    ("HTTP", {"http": HealthHttp()}, V4, 80, GET.format(V4)),
    ("HTTP on another port", {"http": HealthHttp()}, V4, 8080, GET.format(f"{V4}:8080")),
    ("HTTP over IPv6", {"http": HealthHttp()}, V6, 80, GET.format(f"[{V6}]")),
    ("HTTP over IPv6 on another port", {"http": HealthHttp()}, V6, 443, GET.format(f"[{V6}]:443")),
    ("HTTP on the port of checks", {"http": HealthHttp(), "port": 81}, V4, 80, GET.format(f"{V4}:81")),
    ("HTTP with a host", {"http": HealthHttp(host="a.example:81")}, V4, 80, GET.format("a.example:81")),
    ("HTTP with an IPv6 host", {"http": HealthHttp(host="::1")}, V4, 80, GET.format("[::1]")),
    ("HEAD", {"http": HealthHttp(method="HEAD", path="/h?a")}, V4, 80, GET.format(V4).replace("GET /", "HEAD /h?a")),
]


@pytest.mark.parametrize(("options", "address", "port", "sent"), **rows(TEST_REQUESTS))
def test_what_is_sent(options, address, port, sent):
    assert exchanges(HealthCheck(**options), Backend("b", port), address)().outgoing == sent.encode("latin-1")


@pytest.mark.parametrize(("send_proxy", "port", "header"), [
    ("v1", None, b"PROXY UNKNOWN\r\n"),
    ("v2", None, b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"),
    ("v2", 81, b""),
    (None, None, b""),
])  # fmt: skip
def test_a_backend_that_expects_proxy_headers_gets_one_first(send_proxy, port, header):
    backend = Backend("b", 80, send_proxy=send_proxy)
    assert exchanges(HealthCheck(request="x", port=port), backend, V4)().outgoing == header + b"x"
    begun = exchanges(HealthCheck(tls=HealthTls(), port=port), backend, V4)().outgoing
    assert begun.startswith(header + b"\x16\x03\x01"), "the header is outside of TLS"


def test_without_an_exchange_a_handshake_is_enough():
    assert exchanges(HealthCheck(), Backend("b", 80), V4) is None
