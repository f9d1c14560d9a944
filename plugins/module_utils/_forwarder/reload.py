# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``l4proxy reload [--wait]``: have the running forwarder load config and archive anew, and say how it went."""

from __future__ import annotations

import os
import signal
import sys
import time

from . import runtime

PATIENCE = 60.0  # seconds; the forwarder's own bounds (check, new worker) are shorter
POLL = 0.05  # seconds


def run(wait=True, runtime_dir=None, patience=PATIENCE):
    """Signal the forwarder and, with ``wait``, wait for the outcome. Prints one sentence; returns the exit code."""
    ok, sentence = reload(runtime.path(runtime_dir), wait, patience)
    (sys.stdout if ok else sys.stderr).write(sentence + "\n")
    return 0 if ok else 1


def reload(name, wait, patience):
    """Return (ok, sentence) of a reload of the forwarder whose runtime file is ``name``."""
    try:
        before = runtime.read(name)
    except OSError as error:
        return False, f"{name} cannot be read: {error.strerror}"
    if before is None or not runtime.alive(before):
        return False, f"no forwarder runs ({name} names none); start l4proxy-forwarder.service"
    pid, generation = before["pid"], before["generation"]
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        return False, f"the forwarder (pid {pid}) cannot be signalled: {error.strerror}"
    if not wait:
        return True, f"asked the forwarder (pid {pid}) to reload; it serves generation {generation}"
    return _outcome(name, before, patience)


def _outcome(name, before, patience):
    """Wait until the runtime file tells of an attempt that began after ``before`` was read."""
    attempt = before["last_reload"]["attempt"]
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        now = runtime.read(name)
        if now and now["last_reload"]["attempt"] > attempt:
            result = now["last_reload"]
            if result["ok"]:
                return True, f"reloaded: generation {now['generation']} serves (version {now['version']})"
            return False, f"reload failed, generation {now['generation']} goes on serving: {result['error']}"
        if not runtime.alive(before):
            return False, f"the forwarder (pid {before['pid']}) ended during the reload"
        time.sleep(POLL)
    return False, f"the forwarder did not finish the reload within {patience:g} s; its log says what it waits for"
