# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs commands that list something."""

from __future__ import annotations

from ...host.runner import Runner


class CommandFailed(Exception):
    """A command that lists something failed or timed out."""


def output_of(run: Runner, command: list[str]) -> str:
    """The output of a command that lists something. CommandFailed; MissingCommand if it is not installed."""
    done = run(command, None)
    if done.code != 0:
        message = " ".join(done.stderr.split()) or "no message"
        raise CommandFailed(f"`{' '.join(command)}` failed with status {done.code}: {message}")
    return done.stdout.strip()
