# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Let routing daemons announce the addresses of a document while this host's forwarder is healthy.

The keeper asks the forwarder every INTERVAL, and has a token in the kernel for each address (``document.announced``):

    healthy for HOLD seconds      announced: so a health that flaps cannot make the address flap
    withdrawn by an operator      GRACE seconds with the community graceful shutdown, then no token. These seconds count
                                  as healthy, so after ``l4proxy rejoin`` the token is back at once
    unhealthy                     no token, at once
    no answer, MISSES times       no token: a forwarder that has stopped or hangs is unhealthy, one that is being
                                  replaced is not (_shared/promise.py)

A keeper that starts continues with the tokens that it finds: its restart is no reason to move clients. While it does
not run, the forwarder's unit removes them when the forwarder ends (ExecStopPost in a drop-in of role announce).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..._shared import promise
from ..document.announced import ANNOUNCED, GRACEFUL, LOCAL, OWNER, PROTOCOL, Announced, from_route
from ..document.documents import Document
from ..document.model import MAIN
from ..errors import RoutingError
from ..netlink.kernel import NetlinkError, reason
from .health_question import WITHDRAWN, Question, Verdict

# Seconds, and questions in a row without an answer. A hung forwarder loses its token after 1.5 s at the latest.
INTERVAL, MISSES, HOLD, GRACE = 0.5, 2, 10.0, 5.0
# Seconds to sleep without a document.
NEVER = 3600.0

log = logging.getLogger("l4proxy.keep")


class Announcer:
    """``monitor`` wakes the loop up for a descriptor, ``ask`` begins a question, ``now`` is the time of the epoch."""

    def __init__(
        self,
        make_kernel: Callable[[], Any],
        path: str,
        monitor: Any,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        ask: Callable[[str], Any] = Question,
    ):
        self._make_kernel, self._path, self._monitor = make_kernel, path, monitor
        self._clock, self._now, self._ask = clock, now, ask
        self._addresses: tuple[Announced, ...] = ()
        self._question: Any = None
        self._due = self._missed = 0.0
        self._healthy_since: float | None = None
        self._graceful_until = 0.0
        # The metric of the tokens: None without one, 0 until the first look at the kernel.
        self._metric: int | None = 0
        self._since, self._why = 0.0, "the forwarder has not been asked yet"
        # Of the last verdict: sentences may have seconds that change with each question.
        self._reason: str | None = None
        self._fault = ""

    def follow(self, documents: Mapping[str, Document], complete: bool) -> None:
        """Take the addresses from the documents; ``complete``: without a document of the owner there are none."""
        if OWNER in documents:
            entries = documents[OWNER].announce
        elif complete:
            entries = ()
        else:
            return
        active = tuple(each for each in entries if not each.retiring)
        if bool(active) != bool(self._addresses):
            self._close()
            self._metric, self._healthy_since, self._missed, self._due = 0, None, 0, self._clock()
        self._addresses = active

    def sleep(self, now: float) -> float:
        return max(0.0, self._due - now) if self._addresses else NEVER

    @property
    def state(self) -> dict[str, Any] | None:
        """For the state file; None without a document. ``since`` is a time of the epoch."""
        if not self._addresses:
            return None
        states: dict[int | None, str] = {ANNOUNCED: "announced", GRACEFUL: "withdrawing"}
        state = states.get(self._metric, "not announced")
        return {"addresses": self._names(), "state": state, "since": self._since, "why": self._why}

    @property
    def problems(self) -> list[str]:
        """Sentences for the operator."""
        return [self._fault] if self._addresses and self._fault else []

    def _names(self) -> list[str]:
        return [each.address for each in sorted(self._addresses, key=lambda each: each.order)]

    def tend(self) -> bool:
        """Read the answer, ask again when it is due, and set the tokens; whether the result differs from before."""
        if not self._addresses:
            return False
        before, now = (self._metric, self._why, self._fault), self._clock()
        verdict = self._question.verdict() if self._question else None
        if verdict:
            self._close()
            self._missed = 0
        if now >= self._due:
            verdict = self._missing() or verdict
            self._question = self._ask(self._path)
            if not self._question.fault:
                self._monitor.attend(self._question.fileno())
            self._due = now + INTERVAL
        elif not verdict:
            return False
        self._set_tokens(verdict, now)
        return before != (self._metric, self._why, self._fault)

    def _missing(self) -> Verdict | None:
        """Give up the last question, if it has no answer; the verdict if there were too many of these."""
        if self._question is None:
            return None
        fault = self._question.fault or "the forwarder does not answer"
        self._close()
        if promise.holds(self._path):  # a healthy one is being replaced
            return None
        self._missed += 1
        return Verdict(False, None, fault) if self._missed >= MISSES else None

    def _close(self) -> None:
        if self._question:
            self._question.close()
        self._question = None

    def _set_tokens(self, verdict: Verdict | None, now: float) -> None:
        self._fault = ""
        try:
            with self._make_kernel() as kernel:
                present = {each.value for each in kernel.routes(PROTOCOL, MAIN) if each.value}
                if self._metric == 0:
                    self._adopt(present, now)
                if verdict:
                    self._decide(verdict, now)
                if self._question and self._question.fault and self._metric and not present & self._tokens():
                    # Its unit has removed them: it has ended, and the hold time begins anew.
                    self._decide(Verdict(False, None, self._question.fault), now)
                # Only what this host accepts: a run may be about to remove the address, or somebody has.
                local = {from_route(each.value) for each in kernel.routes(PROTOCOL, LOCAL) if each.value}
                here = [each for each in self._addresses if each in local]
                wanted = {each.token(self._metric) for each in here} if self._metric else set()
                # Adding first: between two tokens the address would be withdrawn. A lost one is added after an answer.
                for route in wanted - present if verdict else ():
                    kernel.set_route(route, PROTOCOL)
                for route in present & self._tokens() - wanted:
                    kernel.remove_route(route, PROTOCOL)
        except (NetlinkError, OSError, RoutingError) as error:
            self._fault = f"cannot change what is announced of {', '.join(self._names())}: {reason(error)}"

    def _tokens(self) -> set[Any]:
        return {each.token(metric) for each in self._addresses for metric in (ANNOUNCED, GRACEFUL)}

    def _adopt(self, present: set[Any], now: float) -> None:
        """Continue with what an earlier keeper announced."""
        metrics = {route.metric for each in self._addresses for route in map(each.token, (1, 2)) if route in present}
        self._metric = max(metrics, default=None)
        self._graceful_until, self._since = now + GRACE, self._now()

    def _decide(self, verdict: Verdict, now: float) -> None:
        if verdict.healthy or verdict.reason == WITHDRAWN:
            self._healthy_since = now if self._healthy_since is None else self._healthy_since
        else:
            self._healthy_since = None
            return self._change(None, verdict.reason or verdict.sentence, verdict.sentence)
        held = self._metric in (ANNOUNCED, GRACEFUL) or now - self._healthy_since >= HOLD
        if verdict.healthy and held:
            return self._change(ANNOUNCED, None, verdict.sentence)
        if verdict.healthy:
            return self._change(None, "hold", f"healthy for less than {HOLD:g} s")
        if self._metric == ANNOUNCED:
            self._graceful_until = now + GRACE
        is_graceful = self._metric is not None and now < self._graceful_until
        return self._change(GRACEFUL if is_graceful else None, WITHDRAWN, verdict.sentence)

    def _change(self, metric: int | None, reason: str | None, why: str) -> None:
        if (metric, reason) == (self._metric, self._reason):
            return
        self._since = self._since if metric == self._metric else self._now()
        self._metric, self._reason, self._why = metric, reason, why
        names = ", ".join(self._names())
        states: dict[int | None, str] = {ANNOUNCED: "announced"}
        states[GRACEFUL] = f"announced for {GRACE:g} s more, with graceful-shutdown"
        level = logging.INFO if metric else logging.WARNING
        log.log(level, "%s: %s: %s: %s", OWNER, names, states.get(metric, "not announced"), why)
