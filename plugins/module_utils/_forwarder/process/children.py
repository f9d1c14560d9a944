# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes that the supervisor spawns: workers, the checker, and the check of a config before a reload.

After a restart of the service it has *adopted* ones as well, which the supervisor of before has spawned. They are not
its children in the kernel's sense, so another process may get their pid, and a changed user may not signal them.

All signals are blocked during a fork: the child must not run the supervisor's handlers, and a signal that arrives
before the child has installed its own stays pending until then.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..admin import runtime_file
from ..backends.health_checker import HealthChecker
from ..backends.published_states import NAME, PublishedStates
from ..loop.log import Log
from . import listeners
from .channel import FAILED, Channel, pair
from .worker import Worker

STARTING, SERVING, DRAINING = "starting", "serving", "draining"
WORKER, CHECKER = "worker", "checker"
MAX_FAILURE = 4096  # characters of the reason why a child failed


@dataclass(eq=False)
class Child:
    """A worker or the checker. ``slot`` numbers the workers of a generation from 0; it is 0 for the checker."""

    pid: int
    role: str
    slot: int
    generation: int
    state: str
    channel: Channel
    handover: socket.socket | None = None  # from which its successor reads its UDP sessions (udp/handover.py)
    started: float = 0.0  # monotonic seconds
    kill_at: float | None = None  # monotonic seconds; when a draining child is killed
    failure: str | None = None  # why it ended, one sentence
    hangs: bool = False  # it was killed because its heartbeat was overdue
    covers: list[int] = field(default_factory=list)  # slots that it serves besides its own
    holds: set[int] = field(default_factory=set)  # older generations in whose memory it counts sessions (in_place.py)
    denied: int = 0  # the version of the tables of banned clients that it has (deny_lists.py)
    born: int | None = None  # of an adopted process: when it started (runtime_file.start_time); None: our own child

    def record(self) -> dict:
        """Return this child as JSON for the next program (an exec does not change the monotonic clock).

        Version 0.1.0 accepts no other keys; ``holds`` is handed over beside the children.
        """
        keys = ("pid", "role", "slot", "generation", "state", "started", "kill_at", "covers")
        handover = self.handover.fileno() if self.handover else None
        return {"channel": self.channel.fileno(), "estate": handover, **{key: getattr(self, key) for key in keys}}

    @classmethod
    def adopt(cls, record: dict) -> Child:
        """Return the child of a record(), which may have the key "born" as well."""
        values = {**record, "channel": Channel.adopt(record["channel"]), "handover": None}
        number = values.pop("estate", None)
        if number is not None:
            os.set_inheritable(number, False)
            values["handover"] = socket.socket(fileno=number)
        return cls(**values)

    def descriptors(self) -> list[int]:
        """Return the file descriptors that lead to this child."""
        return [self.channel.fileno(), *([self.handover.fileno()] if self.handover is not None else [])]

    def close(self):
        """Close the descriptors of a child that has ended."""
        self.channel.close()
        if self.handover is not None:
            self.handover.close()

    def signal(self, number: int) -> bool:
        """Send a signal; return False if the child has ended, or belongs to another user."""
        if self.born not in (None, runtime_file.start_time(self.pid)):
            return False
        try:
            os.kill(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def why_not_ready(self) -> str:
        """Return why a child ended before it was ready, one sentence."""
        return self.failure or "it ended before it was ready"


def spawn_worker(generation, slot, listening, logging, now, inherited, others, predecessors=(), tables=()) -> Child:
    """Fork the worker of a slot of ``generation``; return its Child. Raise OSError.

    ``listening`` are the supervisor's listening sockets by name, ``logging`` the settings of its log (LogSettings.of),
    ``inherited`` the descriptors and ``others`` the memory of other generations that it must close, ``predecessors``
    the handover sockets of the workers whose UDP sessions it continues, ``tables`` those of banned clients.
    """
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def run(channel):
        ours.close()
        required = listeners.required(generation.served, generation.slots, listening)
        for name in [name for name in listening if name not in required]:
            listening.pop(name).close()
        log = Log(**logging, generation=generation.number, worker=slot, pid=os.getpid())
        arguments = (generation.served, listening, log, channel, generation.region, slot, theirs, predecessors)
        return Worker(*arguments, generation.number, tables).run()

    try:
        pid, channel = _spawn(f"{WORKER}{slot}", inherited, others, run)
        return Child(pid, WORKER, slot, generation.number, STARTING, channel, ours, now)
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()


def spawn_checker(generation, listening, logging, now, inherited, others, tables) -> Child:
    """Fork the checker of ``generation``; return its Child; see spawn_worker(). Raise OSError."""

    def run(channel):
        for table in tables:
            table.unmap()
        listeners.close_all(listening)
        log = Log(**logging, generation=generation.number, role=CHECKER, pid=os.getpid())
        states = published_states(generation, log)
        return HealthChecker(generation.config, log, channel, generation.region, states).run()

    pid, channel = _spawn(CHECKER, inherited, others, run)
    return Child(pid, CHECKER, 0, generation.number, SERVING, channel, None, now)


def published_states(generation, log) -> PublishedStates:
    """Return what publishes the states of the backends of kernel services."""
    path = os.path.join(runtime_file.directory(), NAME)
    return PublishedStates(generation.config, generation.region, path, log)


def publish_states(generation, log, now):
    """Publish them in this process, if a generation has kernel services."""
    if any(service.in_kernel for service in generation.config.services):
        published_states(generation, log).publish(now)


def _spawn(name, inherited, others, run) -> tuple[int, Channel]:
    """Fork; return (pid, channel) of the new process, which exits with the result of ``run(its channel)``."""
    ours, theirs = pair()
    try:
        pid = _fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid:
        theirs.close()
        return pid, ours
    code = 1
    try:
        ours.close()
        for number in inherited:
            os.close(number)
        for region in others:
            region.close()
        name_process(name)
        code = run(theirs)
    except BaseException as error:  # noqa: BLE001  # nothing may return into the supervisor's stack
        _report_failure(theirs, error)
    os._exit(code)


def name_process(name):
    """Set the name that ps(1) and top(1) show to ``l4-NAME`` (proc_pid_comm(5): 15 characters)."""
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as stream:
            stream.write(f"l4-{name}"[:15])
    except OSError:  # the name is only for people
        pass


def spawn_check(argv, environment, inherited) -> tuple[int, int]:
    """Execute ``argv`` with its output in a pipe; return (pid, read end of the pipe). Raise OSError."""
    pid, pipe = _fork_with_pipe()
    if pid:
        return pid, pipe
    try:
        for number in inherited:
            os.close(number)
        os.dup2(pipe, 1)
        os.dup2(pipe, 2)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        os.execve(sys.executable, argv, environment)
    except BaseException as error:  # noqa: BLE001
        os.write(pipe, f"{sys.executable}: {error}".encode())
    os._exit(127)


def spawn_writer(closed, write) -> int:
    """Fork a child that closes the descriptors ``closed`` and calls ``write()``; return a pipe with what that returns.

    Raise OSError. The pipe has nothing if the child was killed.
    """
    pid, pipe = _fork_with_pipe(collect=False)  # it is short
    if pid:
        return pipe
    try:
        for number in closed:
            os.close(number)
        name_process("writer")
        os.write(pipe, write())
    finally:
        os._exit(0)


def _fork_with_pipe(collect=True):
    """Fork; return (pid, the end that reads) in the parent and (0, the end that writes) in the child. Raise OSError."""
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        pid = _fork(collect)
    except OSError:
        os.close(read)
        os.close(write)
        raise
    os.close(write if pid else read)
    return pid, read if pid else write


def _fork(collect=True):
    """Fork with all signals blocked; the parent restores its mask, the child unblocks them when it is ready."""
    if collect:
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
        signal.set_wakeup_fd(-1)  # it is the supervisor's
    return pid


def _report_failure(channel, error):
    """Tell the supervisor why this process ends; if the supervisor is gone, log it."""
    text = f"{type(error).__name__}: {error}"[:MAX_FAILURE]
    if not channel.send({FAILED: text}):
        log = Log(pid=os.getpid())
        log.event("process failed", level="error", reason=text)
        log.flush()


def reap_children() -> Iterator[tuple[int, int]]:
    """Yield (pid, exit code) of every child process that has ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, os.waitstatus_to_exitcode(status)
