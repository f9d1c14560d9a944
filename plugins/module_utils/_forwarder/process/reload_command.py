# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``l4proxy reload [--wait]``: have the running forwarder load config and archive anew, and say how it went."""

from __future__ import annotations

import os
import re
import signal
import sys
import time

from ..admin import client, runtime_file
from . import lock

PATIENCE = 60.0  # seconds; the forwarder's own bounds (check, new worker) are shorter
POLL = 0.05  # seconds
ASK = 2.0  # seconds between two questions over the admin socket, for what the runtime file may not tell
NEVER = -1  # an attempt before the first


def run(wait=True, runtime_dir=None, patience=PATIENCE):
    """Signal the forwarder and, with ``wait``, wait for the outcome. Prints one sentence; returns the exit code."""
    ok, sentence = reload(runtime_file.path(runtime_dir), wait, patience)
    (sys.stdout if ok else sys.stderr).write(sentence + "\n")
    return 0 if ok else 1


def reload(name, wait, patience):
    """Return (ok, sentence) of a reload of the forwarder whose runtime file is ``name``."""
    try:
        before = runtime_file.read(name)
    except OSError as error:
        return False, f"{name} cannot be read: {error.strerror}"
    if before is None or not runtime_file.alive(before):
        before = _without_file(name)
    if before is None:
        return False, f"no forwarder runs ({name} names none); start l4proxy-forwarder.service"
    pid, generation = before["pid"], before["generation"]
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        return False, f"the forwarder (pid {pid}) cannot be signalled: {error.strerror}"
    if not wait:
        return True, f"asked the forwarder (pid {pid}) to reload; it serves generation {generation}"
    return _outcome(name, before, patience)


def _without_file(name):
    """Return what the runtime file would tell, had nobody removed it: of the process that holds the lock, or that
    systemd names as the unit's ($MAINPID); None where none runs."""
    told = os.environ.get("MAINPID", "")
    pid = lock.holder(os.path.dirname(name)) or (int(told) if re.fullmatch("[0-9]{1,9}", told) else None)
    started = runtime_file.start_time(pid) if pid else None
    if started is None:
        return None
    now = _asked(name) or {"generation": "unknown", "last_reload": {"attempt": NEVER}}
    return {**now, "pid": pid, "started": started}


def _asked(name):
    """Return generation, version and last reload as the admin socket beside the runtime file tells them, or None."""
    try:
        return client.ask(os.path.join(os.path.dirname(name), "admin.sock"), "status")["status"]
    except client.AdminError:
        return None


def _outcome(name, before, patience):
    """Wait until the runtime file, or else the admin socket, tells of an attempt that began after ``before``."""
    attempt = before["last_reload"]["attempt"]
    deadline, ask_at = time.monotonic() + patience, time.monotonic() + ASK
    while time.monotonic() < deadline:
        now = runtime_file.read(name)
        if (now is None or now["last_reload"]["attempt"] <= attempt) and time.monotonic() >= ask_at:
            now, ask_at = _asked(name), time.monotonic() + ASK
        if now and now["pid"] == before["pid"] and now["last_reload"]["attempt"] > attempt:
            result = now["last_reload"]
            if result["ok"]:
                return True, f"reloaded: generation {now['generation']} serves (version {now['version']})"
            return False, f"reload failed, generation {now['generation']} goes on serving: {result['error']}"
        if not runtime_file.alive(before):
            return False, f"the forwarder (pid {before['pid']}) ended during the reload"
        time.sleep(POLL)
    return False, f"the forwarder did not finish the reload within {patience:g} s; its log says what it waits for"
