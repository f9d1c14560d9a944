# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of the checker that asks the agents of backends (health.agent) and publishes what they say.

An agent listens on a TCP port of a backend's address. The checker connects from the proxy's own address, sends nothing,
and reads one line (agent_word.py). An agent that does not answer, or not with such a line, changes nothing: what it has
said last stays, in this and in the next generation. Services that have the same agent share its answers.
"""

from __future__ import annotations

import errno
import heapq
import random
import re
import socket
from dataclasses import replace
from typing import Any

from ..._shared.families import socket_family_of
from ..counters import agent_state
from ..counters.agent_state import AgentWord
from ..counters.shared_memory import BROKEN, DOWN
from ..loop import sockets
from ..loop.log import trace_lines
from .agent_word import parse

LONGEST_LINE = 1024  # bytes, with the end of the line
JITTER = 0.1  # of an interval
WEIGHTS_APART = 1.0  # seconds between two times that workers weigh their backends again, which may take 40 ms
FIRST_WITHIN = 0.5  # seconds: when an agent that has said nothing yet is asked for the first time
_END_OF_LINE = re.compile(rb"[\r\n]")


class AgentProbe:
    """One connection to an agent. Raises OSError if it cannot be opened. Nothing here blocks."""

    def __init__(self, address, port):
        self._data = b""
        self._sock = socket.socket(socket_family_of(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        number = self._sock.connect_ex((address, port))
        if number not in (0, errno.EINPROGRESS):
            self._sock.close()
            raise OSError(number, "connect")

    def poll(self):
        """Return None while there is no line, the line (bytes), or the errno (int).

        EBADMSG: the agent closed before the end of a line; EMSGSIZE: its line is too long.
        """
        while True:
            try:
                data = self._sock.recv(LONGEST_LINE)
            except BlockingIOError:  # also while it connects
                return None
            except OSError as error:
                return error.errno
            if not data:
                return errno.EBADMSG
            self._data += data
            line = _END_OF_LINE.split(self._data, maxsplit=1)[0]
            if len(line) >= LONGEST_LINE:
                return errno.EMSGSIZE
            if len(line) < len(self._data):
                return line

    def close(self):
        """Close it by RST, so that nothing stays in TIME-WAIT."""
        sockets.reset(self._sock)


class Agent:
    """One agent, and the backends that it speaks for: [(service, backend, [numbers of the targets])]."""

    def __init__(self, address, port):
        self.address, self.port = address, port
        self.backends: list[tuple[Any, Any, list[int]]] = []
        self.word = AgentWord()
        self.errno: int | None = None  # of the last answer, 0 for a good one; None: not asked yet
        self.probe: Any = None  # the running AgentProbe
        self.deadline = 0.0

    @property
    def interval(self):
        """Seconds between two questions: the shortest of its services."""
        return min(service.health.agent_interval for service, _backend, _targets in self.backends)

    @property
    def timeout(self):
        """Seconds to wait for its line."""
        return min(self.interval, *(service.health.timeout for service, _backend, _targets in self.backends))

    def ask(self, now):
        """Begin to ask; return the errno if that fails at once."""
        self.deadline = now + self.timeout
        try:
            self.probe = AgentProbe(self.address, self.port)
        except OSError as error:  # ENETUNREACH: no route
            return error.errno
        return None

    def hang_up(self):
        """Stop asking."""
        if self.probe is not None:
            self.probe.close()
            self.probe = None


class AgentChecks:
    """All agents of ``config``; publishes to ``region``."""

    def __init__(self, config, log, region):
        self._log = log
        self._region = region
        self.agents = _agents(config, region) if agent_state.in_region(region) else []
        self._queue = []  # (when due, number, agent), a heap
        self._running = []  # agents that are being asked
        self._urgent = False  # whether a word has changed that workers do not know yet, and not only a weight
        self._weights_changed = False
        self._next_weights = 0.0

    def resume(self, now):
        """Continue with what the agents have told the checker before, and spread the first questions."""
        self._queue.clear()
        self._weights_changed = bool(self.agents)  # perhaps that checker ended before workers knew
        for place, agent in enumerate(self.agents):
            known = [number for _service, _backend, numbers in agent.backends for number in numbers]
            latest = max(known, key=lambda number: self._region.state("agent_answered", number))
            agent.word = agent_state.read(self._region, latest)
            if self._region.state("agent_answered", latest):
                agent.errno = self._region.state("agent_errno", latest)
                for field in agent_state.FIELDS:  # for a backend that is new to this agent, too
                    for number in known:
                        self._region.set_state(field, number, self._region.state(field, latest))
            wait = random.uniform(0, agent.interval if agent.errno == 0 else FIRST_WITHIN)
            heapq.heappush(self._queue, (now + wait, place, agent))

    def turn(self, now):
        """Ask the agents that are due and poll the others; return whether workers have to read the states again."""
        asked, self._running = self._running, []
        while self._queue and self._queue[0][0] <= now:
            _due, place, agent = heapq.heappop(self._queue)
            again = now + agent.interval * random.uniform(1 - JITTER, 1 + JITTER)
            heapq.heappush(self._queue, (again, place, agent))
            if agent.probe is None:  # else it is in the list already
                asked.append(agent)
        for agent in asked:
            try:
                self._advance(agent, now)
            except Exception as error:  # noqa: BLE001  # a defect ends neither the checker nor other agents
                self._log.event("defect", level="error", error=repr(error), trace=trace_lines(error))
                agent.hang_up()
        if not self._urgent and not (self._weights_changed and now >= self._next_weights):
            return False
        self._urgent = self._weights_changed = False
        self._next_weights = now + WEIGHTS_APART
        return True

    def _advance(self, agent, now):
        """Ask an agent, or poll it, and publish its answer."""
        answer = agent.ask(now) if agent.probe is None else agent.probe.poll()
        if answer is None and now < agent.deadline:
            self._running.append(agent)
            return
        agent.hang_up()
        if answer is None:
            answer = errno.ETIMEDOUT
        word = None if isinstance(answer, int) else parse(answer)
        if word is None:
            self._failed(agent, answer if isinstance(answer, int) else errno.EBADMSG)
        else:
            self._answered(agent, word, now)

    def _failed(self, agent, number):
        """Publish that an agent has not answered; what it said before stays."""
        first, agent.errno = not agent.errno, number
        for service, backend, numbers in agent.backends:
            for target in numbers:
                self._region.set_state("agent_errno", target, number)
            if first:
                self._log.event(
                    "agent does not answer",
                    level="warning",
                    service=service.name,
                    backend=backend.name,
                    agent=f"{agent.address} port {agent.port}",
                    error=sockets.describe_errno(number),
                )

    def _answered(self, agent, word, now):
        """Publish what an agent has said."""
        agent.word, agent.errno = agent.word.followed_by(word), 0
        for service, backend, numbers in agent.backends:
            before = agent_state.read(self._region, numbers[0])
            for target in numbers:
                self._region.set_state("agent_answered", target, int(now * 1000))
                self._region.set_state("agent_errno", target, 0)
                if before != agent.word:
                    agent_state.write(self._region, target, agent.word)
            if before != agent.word:
                only_weight = before.percent and word.percent and replace(before, percent=word.percent) == agent.word
                self._weights_changed = True
                self._urgent = self._urgent or not only_weight
                if not only_weight:
                    self._slow_start(numbers, agent.word, before, now)
                self._tell(service, backend, agent.word, before, "debug" if only_weight else "info")

    def _slow_start(self, numbers, word, before, now):
        """Let the weight of a backend grow that was away and now is not."""
        if (before.down or before.admin == "maint") and not (word.down or word.admin == "maint"):
            for target in numbers:
                if self._region.state("health", target) not in (BROKEN, DOWN):
                    self._region.set_state("recovered", target, int(now * 1000))

    def _tell(self, service, backend, word, before, level):
        """Log a new word."""
        self._log.event(
            "agent",
            level="warning" if word.down and not before.down else level,
            service=service.name,
            backend=backend.name,
            word=str(word),
            before=str(before),
            weight_percent=word.percent,
            **({"reason": word.reason} if word.reason else {}),
        )


def _agents(config, region):
    """Return an Agent for each address and port that some backend of ``config`` has one at."""
    agents: dict[tuple[str, int], Agent] = {}
    for service in config.services:
        if service.health.agent is None:
            continue
        for backend in service.backends:
            place = backend.ipv4 or backend.ipv6, service.health.agent.port
            agent = agents.setdefault(place, Agent(*place))
            agent.backends.append((service, backend, list(region.targets_of[service.name, backend.name].values())))
    return list(agents.values())
