# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes the supervisor starts: workers, and the check of a config by the program that would replace it.

Forking is done with all signals blocked: the child must not run the supervisor's handlers, and what is sent to it
before its own are there waits for them.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from dataclasses import dataclass

from . import listeners
from .log import Log
from .worker import READY, Worker

STARTING, SERVING, DRAINING = "starting", "serving", "draining"


@dataclass
class Child:
    """A worker: its process and the pipes to it."""

    pid: int
    generation: int
    state: str
    lifeline: int  # our end of a pipe; when it closes, the worker knows that nobody supervises it
    ready: int | None = None  # where it says READY, or why not; closed once it has
    started: float = 0.0  # monotonic
    kill_at: float | None = None  # monotonic; when a draining worker has had its time
    said: bytes = b""

    def record(self):
        """Return what the next program must know of this worker, as JSON (the monotonic clock outlives an exec)."""
        return {
            "pid": self.pid,
            "generation": self.generation,
            "state": self.state,
            "lifeline": self.lifeline,
            "started": self.started,
            "kill_at": self.kill_at,
        }

    @classmethod
    def recorded(cls, record):
        """Return the worker of a record(): a child of this process still, for exec keeps them."""
        os.set_inheritable(record["lifeline"], False)
        return cls(**record)

    def signal(self, number):
        """Send a signal; a worker that has just ended does not mind."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass

    def close_ready(self):
        """Close the pipe on which it says READY; returns whether it was open."""
        if self.ready is None:
            return False
        os.close(self.ready)
        self.ready = None
        return True

    def hear(self):
        """Read what the worker says; returns True once it is ready, False when it will not be, None: not yet known."""
        data = os.read(self.ready, 4096)
        self.said += data
        if self.said.startswith(READY):
            return True
        return None if data else False

    def why(self):
        """Return why a worker that is not ready is not."""
        return self.said.decode("utf-8", "replace").strip() or "it ended before it was ready"


def start_worker(config, held, generation, now, inherited):
    """Fork a worker of ``config`` on the listeners ``held``; return its Child. Raise OSError.

    ``inherited`` are descriptors of the supervisor the worker must not keep (among them other workers' lifelines).
    """
    pid, (lifeline_read, lifeline_write), (ready_read, ready_write) = _fork_with_pipes(2)
    if pid:
        os.close(lifeline_read)
        os.close(ready_write)
        return Child(pid, generation, STARTING, lifeline_write, ready_read, now)
    code = 1
    try:
        for number in (lifeline_write, ready_read, *inherited):
            os.close(number)
        wanted = listeners.wanted(config)
        for name in [name for name in held if name not in wanted]:
            held.pop(name).close()
        log = Log(generation=generation, pid=os.getpid())
        code = Worker(config, held, log, lifeline_read).run(ready_write)
    except BaseException as error:  # noqa: BLE001  # nothing may return into the supervisor's stack
        _last_words(ready_write, error)
    os._exit(code)


def start_check(argv, environment, inherited):
    """Run ``argv`` with its output in a pipe; return (pid, read end of the pipe). Raise OSError."""
    pid, (read, write) = _fork_with_pipes(1)
    if pid:
        os.close(write)
        return pid, read
    try:
        for number in inherited:
            os.close(number)
        os.dup2(write, 1)
        os.dup2(write, 2)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        os.execve(sys.executable, argv, environment)
    except BaseException as error:  # noqa: BLE001
        os.write(write, f"{sys.executable}: {error}".encode())
    os._exit(127)


def _fork_with_pipes(count):
    """Make ``count`` pipes and fork; return pid, (read, write), ... Raise OSError; no pipe is then left open."""
    pipes = []
    try:
        while len(pipes) < count:
            pipes.append(os.pipe2(os.O_CLOEXEC))
        return (_fork(), *pipes)
    except OSError:
        for number in sum(pipes, ()):
            os.close(number)
        raise


def _fork():
    """Fork with every signal blocked; in the parent the mask is restored, the child unblocks when it is ready."""
    gc.collect()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    else:
        signal.set_wakeup_fd(-1)  # the supervisor's
    return pid


def _last_words(ready_write, error):
    """Tell the supervisor, or when it no longer listens the log, what ended this worker."""
    text = f"{type(error).__name__}: {error}"
    try:
        os.write(ready_write, text.encode())
    except OSError:
        log = Log(pid=os.getpid())
        log.event("worker failed", reason=text)
        log.flush()
