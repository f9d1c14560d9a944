# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checker: the one process that probes all backends and publishes their state, up, down or return path broken.

It writes to the shared memory, where workers read it (balancer.py). What a state follows from: health_state.py. What a
round sends: health_round.py. A healthy fleet costs one handshake per backend and interval. A target whose last result
contradicts its state is probed again after half an interval.

When a client's connect fails, the checker probes that target at once (at most every CLIENT_ROUND_SPACING seconds): is
the backend at fault, or only this client? A bad result makes the target a *suspect*, which workers skip. So does
silence of both probes for longer than usual. The next good result ends that.

It wakes once per TICK, starts the rounds that are due and polls those that run; more often while an exchange makes
progress. 300 backends at 2 s cost about 1 % of a core, with HTTP 2 % and through TLS 10 % (tests/bench/checker.py).
"""

from __future__ import annotations

import gc
import heapq
import random
import select
import signal
import time

from ..._shared.families import FAMILIES
from ..counters import probe_results, shared_memory
from ..counters.heartbeat import BEAT
from ..counters.shared_memory import ANSWERED, BROKEN, DOWN, UNANSWERED, UNASKED, UNKNOWN, UP
from ..loop import sockets
from ..loop.log import RETRY, trace_lines
from .agent_check import AgentChecks
from .flapping import Pauses
from .health_exchange import stopwatch
from .health_round import QUICK_TICK, TICK, CheckedTarget
from .health_state import LOCAL_DELIVERY, ClientConnects

JITTER = 0.1  # of an interval: rounds vary by this, so that the checks of many proxies do not march in step
EARLY = 0.5  # of the interval: the time to the next round of an uncertain target
MOST_DOWN = 200  # backends in one message to the supervisor
CLIENT_ROUND_SPACING = 0.2  # seconds between the starts of two rounds that failures of clients cause

RETURN_PATH_BROKEN = (
    "the backend answers the proxy's own address, but not {}: its replies to clients take another route, or a filter"
    " drops this address (then set health.source to an address that a client could have)"
)


class HealthChecker:
    """Probes the backends of ``config`` and publishes to ``region``; ``line`` is the channel to the supervisor.

    ``states``, a published_states.PublishedStates, tells the keeper.
    """

    def __init__(self, config, log, line, region, states=None):
        self.now = time.monotonic
        self._log = log
        self._line = line
        self._region = region
        self._states = states
        self._beat = region.beat_cell(region.slots)
        self._agents = AgentChecks(config, log, region)
        self._down = []  # [service, backend, family, address] of those with on_down: reset, to be reported
        checked = [target for target in all_targets(config, region) if target.service.checked]
        self._pauses = Pauses(region, log, checked)
        self._targets = [target for target in checked if self._prepare(target)]
        self._queue = []  # (when due, number, target), a heap
        self._running = []  # targets whose round runs
        self._quick_until = 0.0
        self._supervised = True
        self._by_number = {target.number: target for target in self._targets}
        self._failures = 0
        self._failed, self._slow = self._client_failures()  # as of the last turn
        self._broken_families = set()

    def run(self):
        """Check until the supervisor is gone or says that it drains; return the exit code. SIGTERM ends it at once."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        self._resume()
        gc.collect()
        gc.freeze()
        poll = select.poll()
        poll.register(self._line.fileno(), select.POLLIN)
        while self._supervised:
            self._turn()
            if poll.poll(self._pause() * 1000):
                self._read_messages()
        self._log.flush()
        return 0

    def _read_messages(self):
        messages, gone = self._line.receive()
        for message in messages:
            if "log_level" in message:
                self._log.set_level(message["log_level"])
            gone = gone or "drain" in message  # there is nothing to finish
        self._supervised = not gone

    def _pause(self):
        """Return the seconds until the next turn."""
        longest = RETRY if self._log.waiting else BEAT
        tick = QUICK_TICK if self._quick_until > self.now() else TICK
        return tick if self._targets or self._agents.agents else longest

    def _resume(self):
        """Continue from the state of the generation before, and spread the first rounds over an interval."""
        now = self.now()
        self._agents.resume(now)
        self._pauses.resume(now)
        for target in self._targets:
            state = self._region.state
            # A return path that is no longer probed must not stay broken for ever.
            path = state("path", target.number) if target.source else UNASKED
            target.health.resume(state("server", target.number), path)
            unknown = state("health", target.number) == UNKNOWN
            spread = min(target.service.health.interval, 0.5) if unknown else target.service.health.interval
            self._schedule(target, now + random.uniform(0, spread))
        self._broken_families = set(self._region.common_causes())
        self._check_local_delivery()
        if self._states is not None:
            self._states.publish(now)

    def _schedule(self, target, when):
        target.due = when
        heapq.heappush(self._queue, (when, target.number, target))

    def _turn(self):
        now = self.now()
        if self._beat is not None:
            self._region.cells[self._beat] = int(now * 1000)
        changed = self._agents.turn(now)
        still_running = []
        stopwatch.new_turn()
        self._hurry_failed_targets(now)
        for target in self._running:
            result = self._guarded(target, target.poll, now)
            if result is not None:
                changed = self._finish_round(target, result, now) or changed
            elif target.round is not None:
                still_running.append(target)
                changed = self._suspect_if_silent(target, now) or changed
        while self._queue and self._queue[0][0] <= now:
            when, _number, target = heapq.heappop(self._queue)
            if when == target.due and target.round is None:  # else it was rescheduled, and this is the old entry
                self._guarded(target, target.begin, now)
                if target.round is not None:
                    still_running.append(target)
        self._running = still_running
        self._quick_until = max((target.quick_until for target in still_running), default=0.0)
        changed = self._pauses.check(now) or changed
        if changed:
            self._region.advance(shared_memory.EPOCH_HEALTH)
            self._check_local_delivery()
        if self._states is not None:
            self._states.publish(now)
        if self._down:
            self._report_down()
        if self._log.waiting:
            self._log.flush()

    def _guarded(self, target, step, now):
        """Return ``step(now)`` of a target. A defect ends its round, and no other target's: it is unknown then."""
        try:
            return step(now)
        except Exception as error:  # noqa: BLE001
            self._log.event("defect", level="error", error=repr(error), trace=trace_lines(error), **_log_fields(target))
        self._forget(target, now)
        self._schedule(target, now + target.service.health.interval)
        return None

    def _forget(self, target, now):
        """Publish that nothing is known of a target."""
        target.abandon()
        for field in ("server", "path"):
            self._region.set_state(field, target.number, UNASKED)
        if self._region.has_suspects:
            self._region.set_state("suspect", target.number, 0)
        self._publish(target, now)
        self._region.advance(shared_memory.EPOCH_HEALTH)

    def _prepare(self, target):
        """Return whether a target can be probed. If not, a fault of this host must not take its backends out."""
        try:
            target.prepare()
        except (OSError, ImportError) as error:  # ImportError: a Python without ssl
            reason = getattr(error, "strerror", None) or str(error)
            reason = f"health.tls ({target.service.health.tls.ca_file or 'no ca_file'}) cannot be used: {reason}"
            self._log.event("backend not checked", level="error", **_log_fields(target), reason=reason)
            self._forget(target, self.now())
            return False
        return True

    # -- clients ---------------------------------------------------------------------------------------------------

    def _client_failures(self):
        """Return by target number when clients' connects last failed, and when they last took long."""
        return tuple(self._region.latest_of_all(field) for field in ("failed", "slow"))

    def _last_success(self, number):
        """Return when a client's connect to a target last succeeded."""
        return self._region.latest("succeeded", number) / 1000

    def _hurry_failed_targets(self, now):
        """Schedule a round at once where a client's connect has failed since the last turn, or takes long."""
        failures = self._region.total("worker", "failures")
        if failures == self._failures:
            return
        self._failures = failures
        failed, slow = self._client_failures()
        for number, target in self._by_number.items():
            has_failed = failed[number] > self._failed[number]
            if (not has_failed and slow[number] <= self._slow[number]) or self._is_suspect(number):
                continue
            target.urgent = True
            target.client_failed = target.client_failed or has_failed
            when = max(now, target.last_started + CLIENT_ROUND_SPACING)
            if target.round is None and target.due > when:
                self._schedule(target, when)
        self._failed, self._slow = failed, slow

    def _is_suspect(self, number):
        return self._region.has_suspects and bool(self._region.state("suspect", number))

    def _suspect_if_silent(self, target, now):
        """Make a target a suspect if both probes are silent after a client's connect failed; return True if so."""
        failed = target.client_failed and target.is_silent(now)
        if not failed or self._last_success(target.number) >= target.round.started:
            return False
        return self._set_suspect(target, True, "no answer")

    def _set_suspect(self, target, suspect, reason=None):
        """Make workers skip a target, or stop that; return whether it changes anything."""
        if not self._region.has_suspects or self._is_suspect(target.number) == suspect:
            return False
        self._region.set_state("suspect", target.number, int(suspect))
        fields = _log_fields(target)
        if suspect:
            self._log.event("backend skipped", level="warning", **fields, reason=f"a client's connect failed; {reason}")
        else:
            self._log.event("backend answers again", **fields)
        return True

    # -- results ---------------------------------------------------------------------------------------------------

    def _finish_round(self, target, result, now):
        """Count and publish the result of a round; return whether workers have to read the states again."""
        region, number, health = self._region, target.number, target.health
        started, target.round = target.round.started, None
        clients = ClientConnects(self._last_success(number), region.latest("failed", number) / 1000)
        good = health.add(result, clients, started, now)
        goes_down = region.state("server", number) == ANSWERED and health.server.value == UNANSWERED
        if goes_down and target.service.resets_on_down:  # not one that never was up: its address may be new
            self._down.append([target.service.name, target.backend.name, target.family, target.address])
        for field, value in (
            ("server", health.server.value),
            ("path", health.path.value),
            ("server_errno", result.server_errno),
            ("path_errno", result.path_errno),
            ("checks", region.state("checks", number) + 1),
        ):
            region.set_state(field, number, value)
        for field, answered in (("server_failures", result.server), ("path_failures", result.path)):
            if answered is False:
                region.set_state(field, number, region.state(field, number) + 1)
        interval = target.service.health.interval * (EARLY if health.uncertain else 1.0)
        self._schedule(target, max(now, started + interval * random.uniform(1 - JITTER, 1 + JITTER)))
        changed = self._update_suspect(target, result, good, now - started)
        return self._publish(target, now) or changed

    def _update_suspect(self, target, result, good, seconds):
        """Decide after a round whether the target is a suspect; return whether that changes anything."""
        changed = False
        if good:
            target.usual_time = seconds
            changed = self._set_suspect(target, False)
        elif good is False and target.client_failed:
            number = result.path_errno if result.server else result.server_errno
            known = number >= probe_results.FIRST
            reason = probe_results.name(number) if known else sockets.describe_errno(number)
            changed = self._set_suspect(target, True, reason)
        if good is not None:
            target.urgent = target.client_failed = False
        return changed

    def _publish(self, target, now):
        """Publish and log a target's state; return whether it has changed."""
        state, number = target.health.state, target.number
        before = self._region.state("health", number)
        if state == before:
            return False
        milliseconds = int(now * 1000)
        self._region.set_state("health", number, state)
        self._region.set_state("since", number, milliseconds)
        self._pauses.changed(number, before, state, now)
        if state == UP and before in (BROKEN, DOWN):
            self._region.set_state("recovered", number, milliseconds)
        self._log.event(
            "backend state",
            level="info" if state == UP else "warning",
            **_log_fields(target),
            state=shared_memory.STATES[state],
            before=shared_memory.STATES[before],
            server=self._region.probe_result("server", number),
            return_path=self._region.probe_result("path", number),
            **({"reason": RETURN_PATH_BROKEN.format(target.source)} if state == BROKEN else {}),
        )
        return True

    def _report_down(self):
        """Make workers end the sessions of backends that have gone down; what cannot be sent now is sent later."""
        while self._down and self._line.send({"down": self._down[:MOST_DOWN]}):
            del self._down[:MOST_DOWN]

    def _check_local_delivery(self):
        """Report local delivery when all return paths of a family are broken: then no backend is at fault."""
        for family in FAMILIES:
            probed = [target for target in self._targets if target.family == family and target.source]
            broken = [target for target in probed if target.health.path.value == UNANSWERED]
            addresses = {target.address for target in probed}
            all_broken = len(addresses) > 1 and len(broken) == len(probed)
            if all_broken == (family in self._broken_families):
                continue
            self._broken_families ^= {family}
            self._region.set_common_cause(family, all_broken)
            if all_broken:
                self._log.event(
                    "local delivery", level="error", family=family, backends=len(addresses), reason=LOCAL_DELIVERY
                )


def _log_fields(target):
    return {"service": target.service.name, "backend": target.backend.name, "family": target.family}


def all_targets(config, region):
    """Yield a CheckedTarget for each target of the region, in its order."""
    backends = {(service.name, one.name): (service, one) for service in config.services for one in service.backends}
    for number, (service_name, backend_name, family) in enumerate(region.targets):
        yield CheckedTarget(number, *backends[service_name, backend_name], family)
