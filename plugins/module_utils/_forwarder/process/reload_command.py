# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``l4proxy reload [--wait]``: make the running forwarder reload config and archive, and print the result."""

from __future__ import annotations

import os
import re
import signal
import sys
import time

from ..admin import client, runtime_file
from . import lock

TIMEOUT = 60.0  # seconds; the forwarder's own timeouts (check, start of workers) are shorter
POLL = 0.05  # seconds
ASK_INTERVAL = 2.0  # seconds between requests to the admin socket while the runtime file does not show the result
NO_ATTEMPT = -1  # lower than any number of an attempt


def run(wait=True, runtime_dir=None, timeout=TIMEOUT):
    """Signal the forwarder and, with ``wait``, wait for the result. Print one sentence; return the exit status."""
    ok, sentence = reload(runtime_file.path(runtime_dir), wait, timeout)
    (sys.stdout if ok else sys.stderr).write(sentence + "\n")
    return 0 if ok else 1


def reload(name, wait, timeout):
    """Reload the forwarder whose runtime file is ``name``; return (whether that succeeded, sentence)."""
    try:
        before = runtime_file.read(name)
    except OSError as error:
        return False, f"{name} cannot be read: {error.strerror}"
    if before is None or not runtime_file.alive(before):
        before = _without_file(name)
    if before is None:
        return False, f"no forwarder is running (according to {name}); start l4proxy-forwarder.service"
    pid, generation = before["pid"], before["generation"]
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        return False, f"cannot send a signal to the forwarder (pid {pid}): {error.strerror}"
    if not wait:
        return True, f"the forwarder (pid {pid}) was asked to reload; it serves generation {generation} now"
    return _wait_for_result(name, before, timeout)


def _without_file(name):
    """Return what the runtime file would say if it were there; None if no forwarder is running.

    The process is the one that holds the lock, or that systemd names as the main process of the unit ($MAINPID).
    """
    main_pid = os.environ.get("MAINPID", "")
    pid = lock.holder(os.path.dirname(name)) or (int(main_pid) if re.fullmatch("[0-9]{1,9}", main_pid) else None)
    started = runtime_file.start_time(pid) if pid else None
    if started is None:
        return None
    status = _ask(name) or {"generation": "unknown", "last_reload": {"attempt": NO_ATTEMPT}}
    return {**status, "pid": pid, "started": started}


def _ask(name):
    """Return the status document from the admin socket in the directory of the runtime file; None if there is none."""
    try:
        return client.ask(runtime_file.admin_socket(os.path.dirname(name)), "status")["status"]
    except client.AdminError:
        return None


def _wait_for_result(name, before, timeout):
    """Wait until the runtime file, or else the admin socket, shows a reload that began after ``before``.

    Return (whether it succeeded, sentence).
    """
    attempt = before["last_reload"]["attempt"]
    deadline, ask_at = time.monotonic() + timeout, time.monotonic() + ASK_INTERVAL
    while time.monotonic() < deadline:
        now = runtime_file.read(name)
        if (now is None or now["last_reload"]["attempt"] <= attempt) and time.monotonic() >= ask_at:
            now, ask_at = _ask(name), time.monotonic() + ASK_INTERVAL
        if now and now["pid"] == before["pid"] and now["last_reload"]["attempt"] > attempt:
            result = now["last_reload"]
            if result["ok"]:
                done = f"reloaded: generation {now['generation']} serves (version {now['version']}){_how(result)}"
                failed = now.get("failed", {}).items()
                return True, done + "".join(f"; it cannot listen on {name}: {reason}" for name, reason in failed)
            return False, f"reload failed, generation {now['generation']} still serves: {result['error']}"
        if not runtime_file.alive(before):
            return False, f"the forwarder (pid {before['pid']}) ended during the reload"
        time.sleep(POLL)
    return False, f"the forwarder did not finish the reload within {timeout:g} s; see its log"


def _how(result):
    """Return what a successful reload has done with the workers, the end of a sentence."""
    if result.get("in_place"):
        return ", in place"
    because = result.get("new_processes_because")  # missing in version 0.1.0
    return f", by new processes: {because}" if because else ""
