# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes the supervisor starts: workers, the checker, and the check of a config by what would replace it.

Forking is done with all signals blocked: the child must not run the supervisor's handlers, and what is sent to it
before its own are there waits for them.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from dataclasses import dataclass, field

from ..backends.health_checker import Checker
from ..loop.log import Log
from . import channel as channels
from . import listeners
from .channel import FAILED, Channel
from .worker import Worker

STARTING, SERVING, DRAINING = "starting", "serving", "draining"
WORKER, CHECKER = "worker", "checker"
LONGEST_WORDS = 4096  # characters of what ended a child


@dataclass(eq=False)
class Child:
    """A worker or a checker: its process and the line to it. ``slot`` is which of a generation's workers it is."""

    pid: int
    role: str
    slot: int
    generation: int
    state: str
    channel: Channel
    estate: socket.socket | None = None  # where its successor reads what it leaves (handover.py)
    started: float = 0.0  # monotonic
    kill_at: float | None = None  # monotonic; when a draining worker has had its time
    failure: str | None = None
    hangs: bool = False  # and was told to end
    covers: list = field(default_factory=list)  # slots it serves beside its own

    def record(self):
        """Return what the next program must know of this child, as JSON (the monotonic clock outlives an exec)."""
        kept = ("pid", "role", "slot", "generation", "state", "started", "kill_at", "covers")
        estate = self.estate.fileno() if self.estate else None
        return {"channel": self.channel.fileno(), "estate": estate, **{key: getattr(self, key) for key in kept}}

    @classmethod
    def recorded(cls, record):
        """Return the child of a record(): a child of this process still, for exec keeps them."""
        estate = record.get("estate")
        if estate is not None:
            os.set_inheritable(estate, False)
            estate = socket.socket(fileno=estate)
        return cls(**{**record, "channel": Channel.adopt(record["channel"]), "estate": estate})

    def close(self):
        """It has ended: close what led to it."""
        self.channel.close()
        if self.estate is not None:
            self.estate.close()

    def signal(self, number):
        """Send a signal; a child that has just ended does not mind."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass

    def why(self):
        """Return why a child that is not ready is not."""
        return self.failure or "it ended before it was ready"


def start_worker(generation, slot, held, logging, now, inherited, predecessors=()):
    """Fork the worker of a slot of ``generation`` on the listeners ``held``; return its Child. Raise OSError.

    ``logging`` are the settings of its log; ``inherited`` are descriptors of the supervisor it must not keep;
    ``predecessors`` the estates of the workers whose sessions it goes on with.
    """
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def run(line):
        ours.close()
        wanted = listeners.wanted(generation.config, generation.slots, held)
        for name in [name for name in held if name not in wanted]:
            held.pop(name).close()
        log = Log(**logging, generation=generation.number, worker=slot, pid=os.getpid())
        return Worker(generation.config, held, log, line, generation.region, slot, theirs, predecessors).run()

    child = Child(0, WORKER, slot, generation.number, STARTING, None, ours, now)
    try:
        return _start(child, inherited, run)
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()


def start_checker(generation, held, logging, now, inherited):
    """Fork the checker of ``generation``; return its Child. Raise OSError."""

    def run(line):
        listeners.close_all(held)
        log = Log(**logging, generation=generation.number, role=CHECKER, pid=os.getpid())
        return Checker(generation.config, log, line, generation.region).run()

    return _start(Child(0, CHECKER, 0, generation.number, SERVING, None, None, now), inherited, run)


def _start(child, inherited, run):
    """Fork; in the new process call ``run(line)`` and end with what it returns. Return ``child``, completed."""
    ours, theirs = channels.pair()
    try:
        pid = _fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid:
        theirs.close()
        child.pid, child.channel = pid, ours
        return child
    code = 1
    try:
        ours.close()
        for number in inherited:
            os.close(number)
        name_process(f"{child.role}{child.slot}" if child.role == WORKER else child.role)
        code = run(theirs)
    except BaseException as error:  # noqa: BLE001  # nothing may return into the supervisor's stack
        _last_words(theirs, error)
    os._exit(code)


def name_process(name):
    """Have ps(1) and top(1) show ``l4-NAME`` (proc_pid_comm(5): 15 characters)."""
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as stream:
            stream.write(f"l4-{name}"[:15])
    except OSError:  # only a nicety
        pass


def start_check(argv, environment, inherited):
    """Run ``argv`` with its output in a pipe; return (pid, read end of the pipe). Raise OSError."""
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        pid = _fork()
    except OSError:
        os.close(read)
        os.close(write)
        raise
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


def _last_words(line, error):
    """Tell the supervisor, or when it no longer listens the log, what ended this process."""
    text = f"{type(error).__name__}: {error}"[:LONGEST_WORDS]
    if not line.send({FAILED: text}):
        log = Log(pid=os.getpid())
        log.event("process failed", level="error", reason=text)
        log.flush()
