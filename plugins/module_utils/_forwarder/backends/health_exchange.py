# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a health probe says to a server, and what the answer means. No I/O.

An Exchange belongs to one probe: ``outgoing`` are the bytes to send, which the caller empties, and received() takes
what the server sends, until it returns a result (counters/probe_results.py). A *judge* decides about the bytes received
so far: ``judge(data, ended)`` returns None while it needs more. It decides after a bounded number of bytes, so a server
that sends without end costs no memory. One that sends a byte a second meets the timeout of the round.
"""

from __future__ import annotations

import re
import signal
import time

from ..._shared.endpoints import join_endpoint, split_endpoint
from ..config import defaults
from ..counters import probe_results
from ..counters.probe_results import CLOSED, INCOMPLETE, NO_ANSWER, UNEXPECTED

LATER = object()  # a judge's decision: ask again in the next turn

# Seconds of one search of a regular expression, and of all searches in one turn of the checker. Some expressions would
# take years ("(a+)+b"), and a server can send what makes a harmless one slow.
SEARCH_LIMIT = SEARCH_SHARE = 0.1
SHORT = 4096  # bytes in which search() notices SEARCH_LIMIT in time, about 10 ms late for ".*x"

PROXY_HEADERS = {"v1": b"PROXY UNKNOWN\r\n", "v2": b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"}  # the latter: LOCAL

_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-5][0-9]{2})[ \r\n]")
_ANY_STATUS_LINE = b"HTTP/1.1 200 "


class Exchange:
    """Sends ``request`` and gives what comes to ``judge``."""

    def __init__(self, request, judge):
        self.outgoing = request
        self._judge = judge
        self._data = b""
        self._ended = False
        self._later = False

    def received(self, data):
        """Return the result of an answer that goes on with ``data`` (b"": the server has closed), None for not yet."""
        self._data += data
        self._ended = not data
        return self._decide() if self._data else CLOSED

    def _decide(self):
        result = self._judge(self._data, self._ended)
        self._later = result is LATER
        return None if self._later else result

    def new_turn(self):
        """Return the result that could not be found in the turn before, None for not yet."""
        return self._decide() if self._later else None

    def expired(self):
        """Return the result when the time is over; None if the answer is here and still has to be judged."""
        return None if self._later else INCOMPLETE if self._data else NO_ANSWER

    def farewell(self):
        """Return the last bytes to send before the connection is closed."""
        return b""


# -- judges ------------------------------------------------------------------------------------------------------------


def any_answer(_data, _ended):
    """Any answer is good."""
    return 0


class Beginning:
    """An answer is good if it begins with ``expect``."""

    def __init__(self, expect):
        self._expect = expect

    def __call__(self, data, ended):
        expect = self._expect
        if data.startswith(expect):
            return 0
        return None if expect.startswith(data) and not ended else UNEXPECTED


class Search:
    """An answer is good if ``pattern`` is found in its first ``within`` bytes."""

    def __init__(self, pattern, within):
        self._pattern = pattern
        self._within = within

    def __call__(self, data, ended):
        data = data[: self._within]
        found = stopwatch.run(self._find, data)
        if found is LATER:
            return LATER
        if found is None:
            return probe_results.REGEX_TOO_SLOW
        if found:
            return 0
        return UNEXPECTED if ended or len(data) == self._within else None

    def _find(self, data):
        if len(data) <= SHORT:
            return bool(self._pattern.search(data))
        # search() stays in C for all places of the data, and looks for signals only within one place.
        match = self._pattern.match
        return any(match(data, place) for place in range(len(data) + 1))


class StatusLine:
    """An HTTP answer is good if its status code is one of ``statuses``. The rest of the answer does not matter."""

    def __init__(self, statuses):
        self._statuses = statuses

    def __call__(self, data, ended):
        # A short answer is completed with what would make it right, to see whether it can still become that.
        line = _STATUS_LINE.match(data + (b"\n" if ended else _ANY_STATUS_LINE[len(data) :]))
        if line is None:
            return probe_results.NOT_HTTP
        if len(data) < len(_ANY_STATUS_LINE) and not ended:
            return None
        status = int(line[1])
        return 0 if status in self._statuses else probe_results.HTTP_STATUS + status


class _TooSlow(Exception):
    pass


class _Stopwatch:
    """Ends what takes longer than SEARCH_LIMIT; needs the main thread, whose signal SIGALRM it uses."""

    def __init__(self):
        self._left = SEARCH_SHARE
        self._running = False

    def new_turn(self):
        """Allow SEARCH_SHARE seconds from now on."""
        self._left = SEARCH_SHARE

    def run(self, search, data):
        """Return ``search(data)``, None if it takes too long, or LATER if there is no time left in this turn."""
        if self._left <= 0:
            return LATER
        begun = time.monotonic()
        try:
            return self._run(search, data)
        except _TooSlow:
            return None
        finally:
            self._left -= time.monotonic() - begun

    def _run(self, search, data):
        signal.signal(signal.SIGALRM, self._interrupt)
        self._running = True
        signal.setitimer(signal.ITIMER_REAL, SEARCH_LIMIT)
        try:
            return search(data)
        finally:
            self._running = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _interrupt(self, _number, _frame):
        if self._running:
            raise _TooSlow


stopwatch = _Stopwatch()


# -- from the options of a service -------------------------------------------------------------------------------------


def request_and_judge(health, address, port):
    """Return (bytes to send first, judge) of a HealthCheck for a server; the judge is None without an exchange."""
    if health.http is not None:
        return _http_request(health, address, port), StatusLine(health.http.statuses())
    request = (health.request or "").encode("latin-1")
    if health.expect_regex is not None:
        pattern = re.compile(health.expect_regex.encode("latin-1"))
        return request, Search(pattern, health.expect_within or defaults.EXPECT_WITHIN.default)
    if health.expect is not None:
        return request, Beginning(health.expect.encode("latin-1"))
    return request, any_answer if request else None


def exchanges(health, backend, address):
    """Return a function that returns a new Exchange of a TCP check; None if a handshake is enough.

    Raise OSError if certificate authorities cannot be read.
    """
    if not health.asks_application:
        return None
    request, judge = request_and_judge(health, address, health.port or backend.port)
    # A server that expects PROXY headers waits for one; that of a health check names no client.
    header = PROXY_HEADERS[backend.send_proxy] if backend.send_proxy and not health.port else b""
    if health.tls is None:
        return lambda: Exchange(header + request, judge)
    from . import health_tls  # imports ssl, which costs 5 MB and 12 ms

    health_tls.context(health.tls.verify, health.tls.ca_file)
    return lambda: health_tls.TlsExchange(health.tls, judge and Exchange(request, judge), header)


def _http_request(health, address, port):
    http, tls = health.http, health.tls
    host = http.host or (tls.server_name if tls else None)
    if host is None:
        usual = 443 if tls else 80
        host = join_endpoint(address, port) if port != usual else address
    name, given_port = split_endpoint(host)
    host = join_endpoint(name, given_port) if given_port else f"[{name}]" if ":" in name else name
    lines = (
        f"{http.method} {http.path} HTTP/1.1",
        f"Host: {host}",
        "User-Agent: l4proxy",
        "Accept: */*",
        "Connection: close",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")
