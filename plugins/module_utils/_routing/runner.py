# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only place where a command is started; Ansible modules pass a wrapper of their ``run_command`` instead."""

from __future__ import annotations

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
        done = subprocess.run(  # pylint: disable=ansible-bad-function
            list(argv),
            input=stdin or "",
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
            # sbin may be missing from a service's or a user's PATH, and nft lives there.
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise MissingCommand(argv[0]) from error
    except subprocess.TimeoutExpired:
        return Completed(124, "", f"{argv[0]} did not end within {TIMEOUT:g} s")
    return Completed(done.returncode, done.stdout, done.stderr)
