# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Facts that could not be read: the doctor goes on without them, and skips the checks that need them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from .commands import CommandFailed


class NotRead(Exception):
    """A check used a fact that could not be read; the message names the fact and the reason."""


class Unread:
    """The value of such a fact. Every use raises NotRead, so that no check mistakes it for an empty value."""

    def __init__(self, reason: str):
        self._reason = reason

    def __getattr__(self, _name: str) -> NoReturn:
        raise NotRead(self._reason)

    def _raise(self, *_arguments: Any) -> NoReturn:
        raise NotRead(self._reason)

    __bool__ = __iter__ = __len__ = __contains__ = __getitem__ = _raise
    __sub__ = __rsub__ = __and__ = __rand__ = __or__ = __ror__ = _raise


def require(fact: Any) -> None:
    """Raise NotRead if the fact could not be read."""
    if isinstance(fact, Unread):
        bool(fact)


class Reader:
    """Reads facts one by one; ``unread`` has the names of those that failed, with the reasons."""

    def __init__(self) -> None:
        self.unread: dict[str, str] = {}

    def read(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """What ``call`` returns, or an Unread if it raises. ``name`` is the fact's name in findings."""
        try:
            return call(*arguments)
        except NotRead as error:  # this fact needs another one, whose reason is recorded already
            return Unread(str(error))
        except Exception as error:  # noqa: BLE001
            # Files and tools of a host may have any content; the other facts can still be read.
            self.unread[name] = reason_of(error)
            return Unread(f"{name} could not be read: {self.unread[name]}")


def reason_of(error: Exception) -> str:
    """The exception's text, preceded by its class if the text alone says little (``KeyError: 'dst'``)."""
    text = str(error)
    return text if isinstance(error, (OSError, CommandFailed)) else f"{type(error).__name__}: {text}"
