# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""epoll with callbacks, made for many short connections.

Two ways to watch. register() is level-triggered and is what listeners, pipes and datagram sockets use. watch() is
edge-triggered: a TCP connection is added once and its interest hardly ever changes, which saves an epoll_ctl at each
step of its life, and a reset that nobody may look at yet is reported once instead of for ever. Closing a socket takes
it out of the set by itself (epoll(7)), as long as no other process holds it; so forget() needs no system call either.
"""

from __future__ import annotations

import select

READ = select.EPOLLIN  # the same bit as selectors.EVENT_READ
WRITE = select.EPOLLOUT
FIN = select.EPOLLRDHUP
ENDED = FIN | select.EPOLLHUP | select.EPOLLERR  # or the connection is gone
ERROR = select.EPOLLERR
URGENT = select.EPOLLPRI

_EDGES = select.EPOLLET | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLIN
BATCH = 512  # events of one turn


class Poller:
    """Callbacks by file descriptor; a callback takes the event mask."""

    def __init__(self):
        self._epoll = select.epoll()
        self._add = self._epoll.register
        self._callbacks = {}
        self._gone = set()  # descriptors that were given up in this turn; their numbers may be in use again
        self._again = []

    def register(self, source, events, callback):
        """Call ``callback`` again and again while ``source`` (a socket or a descriptor) is READ or WRITE ready."""
        number = _number(source)
        self._epoll.register(number, events)
        self._callbacks[number] = callback

    def unregister(self, source):
        """Undo register()."""
        number = _number(source)
        self._epoll.unregister(number)
        self.forget(number)

    def watch(self, number, callback, writable=False):
        """Call ``callback`` once for each arrival at a descriptor (with ``writable`` also when there is room again)."""
        self._add(number, _EDGES | WRITE if writable else _EDGES)
        self._callbacks[number] = callback

    def watch_writable(self, number):
        """Report room as well, for a descriptor that is watched; at once if there is some."""
        self._epoll.modify(number, _EDGES | WRITE)

    def replace(self, number, callback):
        """Have another callback for a descriptor that is watched."""
        self._callbacks[number] = callback

    def forget(self, number):
        """Call nobody for this descriptor any more; its owner closes it next."""
        self._gone.add(number)
        self._callbacks.pop(number, None)

    def again(self, callback):
        """Call ``callback`` with READ in the next turn, after those whose events are due: it has had its share."""
        self._again.append(callback)

    def turn(self, timeout, contain):
        """Wait up to ``timeout`` seconds (None: for ever) and call whoever is due; returns whether anybody was.

        ``contain(owner, error)`` is given what a callback raises, and what it is a method of. An event of a descriptor
        that an earlier callback of the same turn gave up is dropped: the number may be another connection's by now.
        """
        again, gone, callbacks = self._again, self._gone, self._callbacks
        if again:
            self._again = []
            timeout = 0
        gone.clear()
        events = self._epoll.poll(timeout, BATCH)
        for number, mask in events:
            if number not in gone:
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

    def close(self):
        """Close the epoll descriptor."""
        self._epoll.close()


def events_now(number, wanted=READ | WRITE):
    """Return the mask of what a descriptor is ready for at this moment of what is ``wanted``, 0 for nothing."""
    poll = select.poll()
    poll.register(number, wanted)  # poll(2) and epoll have the same bits
    return sum(mask for _number, mask in poll.poll(0))


def _number(source):
    return source if isinstance(source, int) else source.fileno()
