# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only place where a command is started; Ansible modules pass a wrapper of their ``run_command`` instead."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional

# Even a ruleset of thousands of lines is listed within a second; this bounds a hanging command.
TIMEOUT = 30.0


@dataclass(frozen=True)
class Completed:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


class MissingCommand(Exception):
    """The command is not installed; the text is its name."""


# (argv, standard input) → Completed; raises MissingCommand
Runner = Callable[[Sequence[str], Optional[str]], Completed]


def run(argv: Sequence[str], stdin: str | None = None) -> Completed:
    """Run to the end, at most TIMEOUT seconds, in the C locale."""
    try:
        # The keeper runs without Ansible: there is no module whose run_command it could call.
        process = subprocess.Popen(  # pylint: disable=ansible-bad-function,consider-using-with
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # sbin may be missing from a service's or a user's PATH, and nft lives there.
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
    """Kill what still runs, with its children: a child that holds the pipes would keep us waiting."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()
