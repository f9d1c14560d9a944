# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fact that could not be read: the doctor goes on without it, and says which checks that leaves out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from ...host.runner import Runner


class NotRead(Exception):
    """A check used a fact that could not be read; the text says which and why."""


class Unread:
    """Stands in the place of such a fact. Any use raises NotRead, so that no check takes it for an empty value."""

    def __init__(self, reason: str):
        self._reason = reason

    def __getattr__(self, _name: str) -> NoReturn:
        raise NotRead(self._reason)

    def _raise(self, *_arguments: Any) -> NoReturn:
        raise NotRead(self._reason)

    __bool__ = __iter__ = __len__ = __contains__ = __getitem__ = _raise
    __sub__ = __rsub__ = __and__ = __rand__ = __or__ = __ror__ = _raise


def require(fact: Any) -> None:
    """Raise NotRead where the fact could not be read."""
    if isinstance(fact, Unread):
        bool(fact)


class Reader:
    """Reads facts one by one; ``unread`` is what could not be read, each with the reason."""

    def __init__(self) -> None:
        self.unread: dict[str, str] = {}

    def read(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """What ``call`` returns, or an Unread where it raises. ``what`` names the fact in findings."""
        try:
            return call(*arguments)
        except NotRead as error:  # of another fact, which has its reason already
            return Unread(str(error))
        except Exception as error:  # noqa: BLE001
            # Whatever a host's files and tools say: the other facts can still be read.
            self.unread[what] = reason_of(error)
            return Unread(f"{what} could not be read: {self.unread[what]}")


def reason_of(error: Exception) -> str:
    """An exception in words; its class where the text alone would say little (``KeyError: 'dst'``)."""
    text = str(error)
    return text if isinstance(error, (OSError, CommandFailed)) else f"{type(error).__name__}: {text}"


class CommandFailed(Exception):
    """A command that lists something ended with an error, or did not end."""


def listed(run: Runner, command: list[str]) -> str:
    """What a command prints that lists something. CommandFailed; MissingCommand without it."""
    done = run(command, None)
    if done.code != 0:
        told = " ".join(done.stderr.split()) or "no message"
        raise CommandFailed(f"`{' '.join(command)}` ended with {done.code}: {told}")
    return done.stdout.strip()
