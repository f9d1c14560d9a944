# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only place that starts commands; Ansible modules use a wrapper around their ``run_command`` instead."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional

# Seconds; for commands that hang. Even a ruleset of thousands of lines is listed within one.
TIMEOUT = 30.0


@dataclass(frozen=True)
class Completed:
    """The result of a command."""

    code: int
    stdout: str
    stderr: str


class MissingCommand(Exception):
    """The command is not installed; the text is its name."""


# (argv, standard input) -> Completed; raises MissingCommand
Runner = Callable[[Sequence[str], Optional[str]], Completed]


def run(argv: Sequence[str], stdin: str | None = None) -> Completed:
    """Run a command for at most TIMEOUT seconds, in the C locale."""
    try:
        # The keeper runs without Ansible, so there is no run_command.
        process = subprocess.Popen(  # pylint: disable=ansible-bad-function,consider-using-with
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # sbin, where nft is, may be missing from the PATH of a service or user.
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise MissingCommand(argv[0]) from error
    try:
        stdout, stderr = process.communicate(stdin or "", TIMEOUT)
    except subprocess.TimeoutExpired:
        return Completed(124, "", f"{argv[0]} did not end within {TIMEOUT:g} s")
    finally:
        _end(process)
    return Completed(process.returncode, stdout, stderr)


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a command that still runs, and its children: one that holds the pipes open would block us."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()
