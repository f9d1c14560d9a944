# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One target of the health checker, and one round of probes to it: spoofed first, then from the proxy's own address.

An answer to the spoofed probe tells everything. Only if it does not come soon, the proxy's own address probes too.
With an exchange, a spoofed connection shows that the return path works, and its exchange shows whether the server does.
"""

from __future__ import annotations

import errno
from typing import Any

from ..counters.probe_results import UNEXPECTED
from ..loop import sockets
from .health_exchange import exchanges, request_and_judge
from .health_probe import ExchangeProbe, TcpProbe, UdpProbe
from .health_state import HealthState, RoundResult

TICK = 0.05  # seconds between two polls of a running round
QUICK_TICK = 0.02  # the same for QUICK seconds after a step of an exchange, since the next one may follow at once
QUICK = 0.05
OWN_PROBE_AFTER = 0.5  # of the timeout: then the own address probes too
SILENCE = 2 * TICK  # seconds without an answer that are suspicious, on top of twice the time of the last good round

# Of this host and not of the backend: they show nothing, and must take no backend out.
_OWN_FAULTS = {*sockets.OUT_OF_RESOURCES, errno.EADDRNOTAVAIL}

# Refusals of a spoofed probe: the return path works, and the server is not up.
_REFUSALS = {errno.ECONNREFUSED, errno.ECONNRESET, UNEXPECTED}


class Round:
    """One running round: its probes that are not answered yet, and its result so far."""

    def __init__(self, started, deadline):
        self.started = started
        self.deadline = deadline
        self.result = RoundResult()
        self.spoofed = None  # the probe from a client's address
        self.own = None  # the probe from the proxy's address
        self.own_started = None  # when

    def close(self):
        """Close the probes."""
        for probe in (self.spoofed, self.own):
            if probe is not None:
                probe.close()
        self.spoofed = self.own = None


class CheckedTarget:
    """One backend of one service in one family: its health, and its rounds one after the other."""

    def __init__(self, number, service, backend, family):
        self.number = number  # of the target in the shared memory
        self.service = service
        self.backend = backend
        self.family = family
        self.address = backend.address(family)
        self.source = service.health.source_of(family)
        self.health = self._unknown_health()
        self.round: Any = None  # the running Round
        self.due = 0.0
        self.urgent = False  # a client's connect has failed, or takes long, since the last round ended
        self.client_failed = False  # one has failed
        self.last_started = 0.0
        self.usual_time = 0.0  # seconds of the last good round
        self.quick_until = 0.0  # until then polls follow each other after QUICK_TICK
        self._new_exchange = None
        self._request_and_judge = None

    def prepare(self):
        """Make what the probes send and expect; raise OSError if certificate authorities cannot be read."""
        if self.service.protocol == "udp":
            self._request_and_judge = request_and_judge(self.service.health, self.address, self.backend.port)
        else:
            self._new_exchange = exchanges(self.service.health, self.backend, self.address)

    def _unknown_health(self):
        options = self.service.health
        asks = options.asks_application and self.service.protocol == "tcp"
        return HealthState(options.rise, options.fall, options.fall * options.interval, asks_application=asks)

    def _probe(self, source):
        """Return a probe from ``source``; raise OSError."""
        port = self.service.health.port or self.backend.port
        if self._request_and_judge is not None:
            return UdpProbe(self.address, port, source, *self._request_and_judge)
        if self._new_exchange is not None:
            return ExchangeProbe(self.address, port, source, self._new_exchange())
        return TcpProbe(self.address, port, source)

    def begin(self, now):
        """Start a round."""
        self.last_started = now
        self.round = Round(now, now + self.service.health.timeout)
        if self._new_exchange is not None:
            self.quick_until = now + QUICK
        if self.source is not None:
            try:
                self.round.spoofed = self._probe(self.source)
            except OSError as error:  # EPERM and the like: this host cannot send it, so no backend is at fault
                self.round.result.path_errno = error.errno
        if self.round.spoofed is None:
            self._begin_own_probe(now)

    def _begin_own_probe(self, now):
        self.round.own_started = now
        try:
            self.round.own = self._probe(None)
        except OSError as error:  # ENETUNREACH: no route
            if error.errno in _OWN_FAULTS:
                self.round.result.server_errno = error.errno
            else:
                self._own_answered(error.errno)

    def poll(self, now):
        """Poll the running round; return its RoundResult when it has ended, else None."""
        current = self.round
        late = now >= current.deadline
        if current.spoofed is not None:
            number = self._poll_probe(current.spoofed, late, now)
            if number is not None:
                self._spoofed_answered(number)
        if current.own is not None:
            number = self._poll_probe(current.own, late, now)
            if number is not None:
                self._own_answered(number)
        if current.own_started is None and current.result.server is None and self._own_probe_due(now):
            self._begin_own_probe(now)
        ended = current.spoofed is None and current.own is None
        if ended or (current.result.server and current.result.path):
            current.close()
            return current.result
        return None

    def _poll_probe(self, probe, late, now):
        """Return the result of a probe, None while there is none."""
        number = probe.poll()
        if number is None and late:
            return probe.expired()
        if self._new_exchange is not None and probe.moved:
            probe.moved = False
            self.quick_until = now + QUICK
        return number

    def abandon(self):
        """End the round, and forget the health."""
        if self.round is not None:
            self.round.close()
            self.round = None
        self.health = self._unknown_health()
        self.urgent = self.client_failed = False

    def _own_probe_due(self, now):
        wait = TICK if self.urgent else OWN_PROBE_AFTER * self.service.health.timeout
        spoofed = self.round.spoofed
        return spoofed is None or (now >= self.round.started + wait and not spoofed.established)

    def is_silent(self, now):
        """Return whether both probes of the running round have been unanswered for longer than usual."""
        current = self.round
        if current.own_started is None or current.result.server is not None or current.result.path:
            return False
        return now >= max(current.started + SILENCE, current.own_started + TICK) + 2 * self.usual_time

    def _spoofed_answered(self, number):
        current = self.round
        current.result.path = number == 0 or number in _REFUSALS or current.spoofed.established
        current.spoofed.close()
        current.spoofed = None
        current.result.path_errno = 0 if current.result.path else number
        if current.result.path:
            current.result.server = number == 0
            current.result.server_errno = number

    def _own_answered(self, number):
        current = self.round
        if current.own is not None:
            current.own.close()
            current.own = None
        if current.result.path:
            return  # the answer to a client's address counts more
        current.result.server = number == 0
        current.result.server_errno = number
