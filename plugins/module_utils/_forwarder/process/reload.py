# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A reload is an upgrade: the supervisor becomes the program that is installed now, in the same process.

1. check: ``l4proxy check CONFIG`` runs with the archive that is installed now. A broken archive or a bad config ends
   here.
2. exec: the supervisor replaces itself, same command line, signals blocked until the new handlers are there. Listeners
   and the channels to the workers stay open and are handed over by name; the workers remain its children.
3. The new program loads the config and starts workers (supervisor.py); only when all are ready do the others drain.

One at a time: a SIGHUP that comes meanwhile is served afterwards.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys

from ..loop.log import places
from . import children, reexec_state

CHECK_TIMEOUT = 20.0  # seconds
MOST_OUTPUT = 65536  # bytes of the check's output that are kept


def command_line():
    """Return the arguments this process was started with, the interpreter's own included."""
    with open("/proc/self/cmdline", "rb") as stream:
        return [os.fsdecode(part) for part in stream.read().split(b"\0")[:-1]]


def internal(error):
    """Return the sentence for an exception that nobody expected, and where it was raised."""
    return f"internal error: {error!r} at {' '.join(places(error)[-3:])}"


def check_command(command, own_arguments, config_path):
    """Return the command line that checks a config with the interpreter and archive of ``command``.

    ``own_arguments`` is how many of its last arguments are the program's own.
    """
    return [*command[: len(command) - own_arguments], "check", config_path]


class Upgrade:
    """The reload under way, if any; ``attempt`` counts those that were begun."""

    def __init__(self, supervisor, command):
        self.wanted = False
        self.attempt = 0
        self._supervisor = supervisor
        self._command = command
        self._check = None  # (pid, descriptor of its output)
        self._code = None  # exit code of the check
        self._output = b""
        self._overdue = None

    def descriptors(self):
        """Return the descriptors open for the check."""
        return [self._check[1]] if self._check and self._check[1] is not None else []

    def step(self):
        """Do what can be done now; whatever fails, what serves goes on serving."""
        try:
            self._step()
        except Exception as error:  # noqa: BLE001
            self._check = None
            self._supervisor.reload_failed(internal(error))

    def _step(self):
        supervisor = self._supervisor
        if self._check:
            if self._code is not None and self._check[1] is None:
                self._checked()
        elif self.wanted and supervisor.serving and not supervisor.candidate and not supervisor.pool.starting():
            self.wanted = False
            self._begin()

    def cancel(self):
        """The forwarder is stopping."""
        self.wanted = False
        if self._check:
            self._kill()

    def child_ended(self, pid, code):
        """A child that is no worker has ended."""
        if self._check and pid == self._check[0]:
            self._code = code

    def _begin(self):
        supervisor = self._supervisor
        self.attempt += 1
        self._code, self._output = None, b""
        supervisor.log.event("reload", attempt=self.attempt)
        supervisor.notifier.reloading()
        environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        argv = check_command(self._command, len(sys.argv) - 1, supervisor.path)
        try:
            pid, output = children.start_check(argv, environment, supervisor.inherited())
        except OSError as error:
            supervisor.reload_failed(f"the check cannot be started: {error}")
            return
        self._check = (pid, output)
        supervisor.selector.register(output, selectors.EVENT_READ, self._hear)
        self._overdue = supervisor.timers.add(supervisor.now() + CHECK_TIMEOUT, self._too_slow)

    def _hear(self):
        pid, output = self._check
        data = os.read(output, 4096)
        if len(self._output) < MOST_OUTPUT:
            self._output += data
        if not data:
            self._supervisor.selector.unregister(output)
            os.close(output)
            self._check = (pid, None)

    def _too_slow(self):
        self._output += f"\nthe check took longer than {CHECK_TIMEOUT:g} s".encode()
        self._kill()

    def _kill(self):
        """End the check. Once it was reaped (its output may still be unread) its number may be another process's."""
        if self._code is None:
            os.kill(self._check[0], signal.SIGKILL)

    def _checked(self):
        supervisor = self._supervisor
        supervisor.timers.discard(self._overdue, self._too_slow)
        self._check = None
        if self._code != 0:
            said = self._output.decode("utf-8", "replace").strip().splitlines()
            supervisor.reload_failed("; ".join(said[-20:]) or f"the check ended with code {self._code}")
            return
        if supervisor.pool.starting():  # a worker died during the check; its successor's start is watched here
            self.wanted = True
            self.attempt -= 1
            return
        self._exec()

    def _exec(self):
        """Become the installed program; only a failure returns."""
        supervisor = self._supervisor
        supervisor.endpoints.end_clients()
        state, descriptors = supervisor.handed_over()
        variable = reexec_state.leave(state, descriptors)
        supervisor.log.flush()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            os.execve(sys.executable, self._command, {**os.environ, **variable})
        except (OSError, ValueError) as error:
            reexec_state.recall(variable, descriptors)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            supervisor.reload_failed(f"{sys.executable} cannot be executed: {error}")
