# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One target of the health checker, and one round of probes to it: spoofed first, then from the proxy's own address.

An answer to the spoofed probe tells everything. Only if it does not come soon, the proxy's own address probes too.
"""

from __future__ import annotations

import errno
from typing import Any

from .health_probe import TcpProbe, UdpProbe
from .health_state import HealthState, RoundResult

TICK = 0.05  # seconds between two polls of a running round
OWN_PROBE_AFTER = 0.5  # of the timeout: then the own address probes too
SILENCE = 2 * TICK  # seconds without an answer that are suspicious, on top of twice the time of the last good round

# Refusals of a spoofed probe: the return path works, and the server is not up.
_REFUSALS = {errno.ECONNREFUSED, errno.ECONNRESET, errno.EBADMSG}


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

    def _unknown_health(self):
        options = self.service.health
        return HealthState(options.rise, options.fall, window=options.fall * options.interval)

    def _probe(self, source):
        """Return a probe from ``source``; raise OSError."""
        options = self.service.health
        port = options.port or self.backend.port
        if self.service.protocol == "udp":
            request, expect = (text.encode("latin-1") for text in (options.request, options.expect or ""))
            return UdpProbe(self.address, port, source, request, expect)
        return TcpProbe(self.address, port, source)

    def begin(self, now):
        """Start a round."""
        self.last_started = now
        self.round = Round(now, now + self.service.health.timeout)
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
            self._own_answered(error.errno)

    def poll(self, now):
        """Poll the running round; return its RoundResult when it has ended, else None."""
        current = self.round
        if current.spoofed is not None:
            number = current.spoofed.poll()
            if number is not None:
                self._spoofed_answered(number)
            elif now >= current.deadline:
                self._spoofed_answered(errno.ETIMEDOUT)
        if current.own is not None:
            number = current.own.poll()
            if number is not None:
                self._own_answered(number)
            elif now >= current.deadline:
                self._own_answered(errno.ETIMEDOUT)
        if current.own_started is None and current.result.server is None and self._own_probe_due(now):
            self._begin_own_probe(now)
        ended = current.spoofed is None and current.own is None
        if ended or (current.result.server and current.result.path):
            current.close()
            return current.result
        return None

    def abandon(self):
        """End the round, and forget the health."""
        if self.round is not None:
            self.round.close()
            self.round = None
        self.health = self._unknown_health()
        self.urgent = self.client_failed = False

    def _own_probe_due(self, now):
        wait = TICK if self.urgent else OWN_PROBE_AFTER * self.service.health.timeout
        return self.round.spoofed is None or now >= self.round.started + wait

    def is_silent(self, now):
        """Return whether both probes of the running round have been unanswered for longer than usual."""
        current = self.round
        if current.own_started is None or current.result.server is not None or current.result.path:
            return False
        return now >= max(current.started + SILENCE, current.own_started + TICK) + 2 * self.usual_time

    def _spoofed_answered(self, number):
        current = self.round
        current.spoofed.close()
        current.spoofed = None
        current.result.path = number == 0 or number in _REFUSALS
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
