# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A reload: the workers take the config in place, or the supervisor replaces itself by the installed program.

1. Check: ``l4proxy check CONFIG`` runs with the installed archive. A broken archive or an invalid config ends the
   reload here.
2. In place: if the installed archive is the one that runs, and all workers serve, they take the config as they are
   (in_place.py). If one of them cannot, nothing has changed, and the reload goes on with the next step.
3. Exec: the supervisor executes the installed program with its own command line, in the same process. Signals stay
   blocked until the new handlers are installed. Listening sockets and channels stay open and are handed over by name;
   workers remain children of this process.
4. The new program loads the config and spawns workers (supervisor.py). Only when all are ready do the others drain.

Reloads run one at a time. A SIGHUP during a reload starts another one afterwards.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
from functools import partial
from typing import Protocol

from ..loop.log import trace_lines
from . import children, reexec_state
from .reload_results import ReloadResults
from .supervisor_loop import SupervisorLoop

CHECK_TIMEOUT = 20.0  # seconds
MAX_OUTPUT = 65536  # bytes of the check's output that are kept
MAX_LINES = 20  # lines of it in an error


class Host(Protocol):
    """What a reload uses of the supervisor."""

    def may_reload(self) -> bool:
        """Whether a config is live, no worker is starting, and no change in place is in progress."""

    def change_in_place(self) -> None:
        """Begin to take the config in place; new_processes() is called if that cannot be done."""

    def reload_failed(self, error: str) -> None:
        """Called when a reload fails; the live generation goes on."""

    def inherited_descriptors(self) -> list[int]:
        """Return the file descriptors that a forked child must close."""

    def handover(self) -> tuple[dict, list[int]]:
        """Return the state for the next program, and the file descriptors that must stay open."""


def own_command() -> list[str]:
    """Return the command line of this process, including the interpreter and its options."""
    with open("/proc/self/cmdline", "rb") as stream:
        return [os.fsdecode(part) for part in stream.read().split(b"\0")[:-1]]


def internal_error(error: BaseException) -> str:
    """Return a sentence about an unexpected exception and where it was raised."""
    return f"internal error: {error!r} at {' '.join(trace_lines(error)[-3:])}"


def check_command(command: list[str], own_arguments: int, config_path: str) -> list[str]:
    """Return the command line that checks a config with the interpreter and archive of ``command``.

    ``own_arguments`` is how many of its last arguments are the program's own.
    """
    return [*command[: len(command) - own_arguments], "check", config_path]


class Reload:
    """The reload in progress, if any. ``requested``: another one is to begin as soon as possible."""

    def __init__(self, loop: SupervisorLoop, host: Host, results: ReloadResults, config_path: str, command: list[str]):
        self.requested = False
        self._loop = loop
        self._host = host
        self._results = results
        self._config_path = config_path
        self._command = command
        self._check: int | None = None  # pid of the check, if it is running
        self._code: int | None = None  # its exit code
        self._pipe: int | None = None  # from which its output is read
        self._output = b""
        self._timer = 0
        self._new_processes = False  # whether the config is to be loaded by new processes, as soon as possible

    def descriptors(self) -> list[int]:
        """Return the file descriptors that are open for the check."""
        return [] if self._pipe is None else [self._pipe]

    def step(self):
        """Do the next step, if it can be done now. A failure changes nothing but the result of the reload."""
        try:
            self._step()
        except Exception as error:  # noqa: BLE001
            self._check = None
            self._new_processes = False
            self._host.reload_failed(internal_error(error))

    def _step(self):
        if self._check:
            if self._code is not None and self._pipe is None:
                self._finish_check()
        elif self._new_processes and self._host.may_reload():
            self._new_processes = False
            self._exec()
        elif self.requested and not self._new_processes and self._host.may_reload():
            self.requested = False
            self._begin()

    def new_processes(self, reason: str):
        """Go on with new processes; ``reason`` says why the config cannot be taken in place."""
        self._loop.log.event("new processes", reason=reason)
        self._results.new_processes_because = reason
        self._new_processes = True

    def cancel(self):
        """Stop the reload, because the forwarder stops."""
        self.requested = self._new_processes = False
        self._kill_check()

    def child_ended(self, pid: int, code: int | None):
        """Note the end of a child that is not in the worker pool: maybe the check."""
        if pid == self._check:
            self._code = code

    def _begin(self):
        self._code, self._output = None, b""
        self._results.begin()
        environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        argv = check_command(self._command, len(sys.argv) - 1, self._config_path)
        try:
            self._check, pipe = children.spawn_check(argv, environment, self._host.inherited_descriptors())
        except OSError as error:
            self._host.reload_failed(f"the check cannot be started: {error}")
            return
        self._pipe = pipe
        self._loop.selector.register(pipe, selectors.EVENT_READ, partial(self._read_output, pipe))
        self._timer = self._loop.call_later(CHECK_TIMEOUT, self._check_overdue)

    def _read_output(self, pipe):
        data = os.read(pipe, 4096)
        if len(self._output) < MAX_OUTPUT:
            self._output += data
        if not data:
            self._loop.selector.unregister(pipe)
            os.close(pipe)
            self._pipe = None

    def _check_overdue(self):
        self._output += f"\nthe check took longer than {CHECK_TIMEOUT:g} s".encode()
        self._kill_check()

    def _kill_check(self):
        """Kill the check, unless it is reaped already: another process may have its pid then."""
        if self._check and self._code is None:
            os.kill(self._check, signal.SIGKILL)

    def _finish_check(self):
        self._loop.timers.discard(self._timer, self._check_overdue)
        self._check = None
        if self._code != 0:
            lines = self._output.decode("utf-8", "replace").strip().splitlines()
            self._host.reload_failed("; ".join(lines[-MAX_LINES:]) or f"the check ended with code {self._code}")
        elif self._host.may_reload():
            self._host.change_in_place()
        else:  # a worker died during the check; only this program can watch its replacement start
            self.requested = True
            self._results.attempt -= 1

    def _exec(self):
        """Execute the installed program; this returns only after a failure."""
        state, descriptors = self._host.handover()
        variable = reexec_state.leave(state, descriptors)
        self._loop.log.flush()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            os.execve(sys.executable, self._command, {**os.environ, **variable})
        except (OSError, ValueError) as error:
            reexec_state.recall(variable, descriptors)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._host.reload_failed(f"{sys.executable} cannot be executed: {error}")
