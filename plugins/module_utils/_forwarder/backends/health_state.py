# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Active health: from the results of probes to a state, UP, BROKEN (return path broken) or DOWN. Pure.

A probe from the proxy's own address shows whether the server is up. A spoofed probe, from an address that the proxy
does not own, shows whether the return path works: any answer proves it, even a refusal. A client's connection counts
more than the spoofed probe, because the network may drop the probe's source (a bogon filter) but not the clients'.
Where the probes ask the application, a client's handshake shows nothing of the server, only the return path.
Time is passed in (monotonic seconds). Who probes and publishes: health_checker.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..counters.shared_memory import ANSWERED, BROKEN, DOWN, UNANSWERED, UNASKED, UNKNOWN, UP

LOCAL_DELIVERY = (
    "the return paths of all backends are broken at once, so local delivery on this proxy is at fault, not the"
    " backends: check its rules and routes (l4proxy keep --dry-run)"
)


class Verdict:
    """The verdict on one kind of probe: good after ``rise`` good results in a row, bad after ``fall`` bad ones.

    ``value`` is UNASKED until the first good result or ``fall`` bad ones, then ANSWERED or UNANSWERED.
    """

    __slots__ = ("_fall", "_rise", "_streak", "failures", "value")

    def __init__(self, rise, fall):
        self._rise = rise
        self._fall = fall
        self._streak = 0  # results in a row that contradict the verdict
        self.failures = 0
        self.value = UNASKED

    @property
    def uncertain(self):
        """Whether the last result contradicts the verdict, so that the next probe should come soon."""
        return self._streak > 0

    def add(self, good):
        """Count one result."""
        if not good:
            self.failures += 1
        if (self.value == ANSWERED) == good and self.value != UNASKED:
            self._streak = 0
            return
        self._streak += 1
        if self.value == UNASKED:
            enough = good or self._streak >= self._fall
        else:
            enough = self._streak >= (self._rise if good else self._fall)
        if enough:
            self.value = ANSWERED if good else UNANSWERED
            self._streak = 0


@dataclass
class RoundResult:
    """What one round of probes showed of the server and of the return path: True, False, or None for not known."""

    server: bool | None = None
    path: bool | None = None
    server_errno: int = 0
    path_errno: int = 0


@dataclass
class ClientConnects:
    """When clients' connects to a target last succeeded and failed; monotonic seconds, 0 for never."""

    succeeded: float = 0.0
    failed: float = 0.0


@dataclass
class HealthState:
    """The state of one target, from its rounds of probes and from clients' connections."""

    rise: int
    fall: int
    window: float  # seconds for which a client's success outweighs the spoofed probe
    asks_application: bool = False  # a client's successful connect does not show that the server is up
    unanswered_since: float | None = None  # start of the first round in a row whose spoofed probe was not answered
    server: Verdict = field(init=False)
    path: Verdict = field(init=False)

    def __post_init__(self):
        self.server = Verdict(self.rise, self.fall)
        self.path = Verdict(self.rise, self.fall)

    @property
    def uncertain(self):
        """Whether the next round should start before its regular time."""
        return self.server.uncertain or self.path.uncertain

    def add(self, result, clients, started, now):
        """Count the RoundResult of a round that began at ``started``; ``clients`` is a ClientConnects.

        Return whether the round was good: True, False, or None if it shows nothing.
        """
        server, path = result.server, result.path
        if path:
            self.unanswered_since = None
        elif path is False and self.unanswered_since is None:
            self.unanswered_since = started
        if clients.succeeded and clients.succeeded >= started:  # a client was served during the round
            path = True
            server = server if self.asks_application else True
        elif path is False and server and self._clients_outweigh(clients, now):
            path = True
        if path is False and server is False:
            path = None  # a server that is down says nothing about the return path
        if server is not None:
            self.server.add(server)
        if path is not None:
            self.path.add(path)
        return None if server is None and path is None else server is not False and path is not False

    def _clients_outweigh(self, clients, now):
        """Return whether a client's success outweighs the unanswered spoofed probe.

        A success since the probes went unanswered always does, whoever failed since. An earlier one does until a
        client fails.
        """
        success = clients.succeeded
        recent = bool(success) and now - success <= self.window
        return recent and (success >= self.unanswered_since or success > clients.failed)

    @property
    def state(self):
        """UNKNOWN, UP, BROKEN (return path broken) or DOWN."""
        if self.server.value == UNANSWERED:
            return DOWN
        if self.path.value == UNANSWERED:
            return BROKEN
        if self.server.value == UNASKED:  # it has refused less than ``fall`` times, which proves its return path only
            return UNKNOWN
        return UP

    def resume(self, server, path):
        """Continue with the verdicts of an earlier checker."""
        self.server.value, self.path.value = server, path
