# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""epoll with callbacks, made for many short connections.

register() is level-triggered; listeners, pipes and datagram sockets use it. watch() is edge-triggered, for TCP
connections: each is added once and hardly ever changed, which saves an epoll_ctl at each step of its life, and a reset
that cannot be handled yet is reported once instead of in every turn. A socket that is closed leaves the epoll set by
itself (epoll(7)), if no other process has it open; so forget() needs no system call.
"""

from __future__ import annotations

import select
from typing import Any, Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
FIN = select.EPOLLRDHUP
ENDED = FIN | select.EPOLLHUP | select.EPOLLERR  # FIN, reset or error
ERROR = select.EPOLLERR
URGENT = select.EPOLLPRI

_EDGES = select.EPOLLET | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLIN
MOST_EVENTS = 512  # of one turn

Callback = Callable[[int], Any]  # takes the event mask
Source = Any  # a descriptor, or an object with fileno()


class Poller:
    """Calls callbacks with the event mask of their file descriptor."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._add = self._epoll.register
        self._callbacks: dict[int, Callback] = {}
        self._gone: set[int] = set()  # descriptors forgotten in this turn; their numbers may be in use again
        self._again: list[Callback] = []

    def register(self, source: Source, events: int, callback: Callback) -> None:
        """Call ``callback`` in each turn in which ``source`` (a socket or a descriptor) has one of ``events``."""
        number = _number(source)
        self._epoll.register(number, events)
        self._callbacks[number] = callback

    def unregister(self, source: Source) -> None:
        """Undo register()."""
        number = _number(source)
        self._epoll.unregister(number)
        self.forget(number)

    def watch(self, number: int, callback: Callback, writable: bool = False) -> None:
        """Call ``callback`` once for each arrival at a descriptor; with ``writable`` also when there is room again."""
        self._add(number, _EDGES | WRITE if writable else _EDGES)
        self._callbacks[number] = callback

    def watch_writable(self, number: int) -> None:
        """Report room as well, for a descriptor that is watched; at once if there is room now."""
        self._epoll.modify(number, _EDGES | WRITE)

    def replace(self, number: int, callback: Callback) -> None:
        """Set another callback for a descriptor that is watched."""
        self._callbacks[number] = callback

    def forget(self, number: int) -> None:
        """Report nothing about this descriptor any more; its owner closes it next."""
        self._gone.add(number)
        self._callbacks.pop(number, None)

    def again(self, callback: Callback) -> None:
        """Call ``callback`` with READ in the next turn, after the events of that turn."""
        self._again.append(callback)

    def turn(self, timeout: float | None, contain: Callable[[object, Exception], None]) -> bool:
        """Wait up to ``timeout`` seconds (None: for ever) and call the callbacks; return whether there were any.

        An exception of a callback goes to ``contain(owner, error)``; ``owner`` is the object whose method it is. An
        event is dropped if an earlier callback of this turn has forgotten its descriptor, whose number may be reused.
        """
        again, gone, callbacks = self._again, self._gone, self._callbacks
        if again:
            self._again = []
            timeout = 0
        gone.clear()
        events = self._epoll.poll(timeout, MOST_EVENTS)
        for number, mask in events:
            if not gone or number not in gone:
                callback = callbacks[number]
                try:
                    callback(mask)
                except Exception as error:  # noqa: BLE001
                    contain(getattr(callback, "__self__", None), error)
        for callback in again:
            try:
                callback(READ)
            except Exception as error:  # noqa: BLE001
                contain(getattr(callback, "__self__", None), error)
        return bool(events or again)

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._epoll.close()


def events_now(number: int, wanted: int = READ | WRITE) -> int:
    """Return which of the ``wanted`` events a descriptor has now, as a mask; 0: none."""
    poll = select.poll()
    poll.register(number, wanted)  # poll(2) and epoll have the same bits
    return sum(mask for _number, mask in poll.poll(0))


def _number(source):
    return source if isinstance(source, int) else source.fileno()
