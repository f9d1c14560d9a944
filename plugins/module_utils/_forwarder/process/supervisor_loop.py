# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisor's event loop: selector, timers, signals and log. A defect in one callback does not stop the others."""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from ..loop.log import RETRY, Log, trace_lines
from ..loop.timers import Timers

PAUSE_AFTER_DEFECT = 0.05  # seconds; an event that a failed callback has not consumed is reported again at once


class SupervisorLoop:
    """Callbacks of the selector take no arguments, nor do those of timers; ``now()`` is in monotonic seconds."""

    def __init__(self, log: Log):
        self.log = log
        self.now = time.monotonic
        self.selector = selectors.EpollSelector()
        self.timers = Timers()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._signals: deque[int] = deque()
        self._wakeup: tuple[int, ...] = ()  # both ends of a pipe to which Python writes when a signal arrives

    def call_later(self, seconds: float, callback: Callable[[], None]) -> int:
        """Call ``callback`` after ``seconds``; return the handle that timers.discard() takes."""
        return self.timers.add(self.now() + seconds, callback)

    def handle_signals(self, handlers: dict[int, Callable[[], None]]):
        """Call these handlers, {signal number: function}, from turn(), and unblock their signals."""
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = (read, write)
        self._handlers = handlers
        self.selector.register(read, selectors.EVENT_READ, partial(os.read, read, 64))
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in handlers:
            signal.signal(number, lambda caught, _frame: self._signals.append(caught))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)

    def turn(self):
        """Wait for events, signals or timers and run all callbacks that are due."""
        timeout = self.timers.timeout(self.now())
        if self.log.waiting:
            timeout = RETRY if timeout is None else min(RETRY, timeout)
        for key, _mask in self.selector.select(timeout):
            self.contain(key.data)
        while self._signals:
            self.contain(self._handlers[self._signals.popleft()])
        for callback in self.timers.due(self.now()):
            self.contain(callback)

    def contain(self, function: Callable, *arguments):
        """Call ``function``; log an exception as a defect and go on."""
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001
            self.log.event("defect", level="error", error=repr(error), trace=trace_lines(error))
            time.sleep(PAUSE_AFTER_DEFECT)

    def descriptors(self) -> list[int]:
        """Return the file descriptors of the loop itself, which forked children must close."""
        return [self.selector.fileno(), *self._wakeup]
