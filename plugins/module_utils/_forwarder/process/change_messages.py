# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The messages by which a worker takes a config in place. N is the number of the new generation.

supervisor: {"prepare": N, "part": 0, "parts": 3, "names": [...]} with descriptors: in part 0 the document and the
            memory of the new generation, in each part the listening sockets that are new, in the order of ``names``
worker:     {"received": N, "part": 0}, which asks for the next part; so few descriptors are in flight at a time
worker:     {"prepared": N}, or {"prepared": N, "refused": "a sentence"}
supervisor: {"use": N, "until": monotonic seconds, "log_level": str}, or {"discard": N} if another worker has refused
worker:     {"using": N}, or {"using": N, "refused": "a sentence"}: it is broken, or it read the message after "until",
            when another worker may count in its row already; it has to be replaced
worker:     {"released": M} when it counts nothing in the memory of an older generation M any more

The document is (config.Config, record of the memory), pickled: both ends run the same archive, and to read a config of
300 services as JSON and check it again would take each worker 30 ms instead of 3.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..counters.shared_memory import Region
from ..loop.log import trace_lines
from . import config_change, listeners
from .channel import DESCRIPTORS, MAX_DESCRIPTORS

if TYPE_CHECKING:
    from .worker import Worker

NOT_ARRIVED = "not all file descriptors have arrived; the limit of open files may be too low (forwarder_nofile)"
TOO_LATE = "it did not run for some seconds"


def document(config, region) -> int:
    """Return the descriptor of a memfd with the document; raise OSError."""
    number = os.memfd_create("l4proxy-config", os.MFD_CLOEXEC)
    try:
        with open(number, "wb", closefd=False) as stream:
            pickle.dump((config, region.record), stream)
    except BaseException:
        os.close(number)
        raise
    return number


def parts(number: int, document: int, region: int, listening: dict[str, Any]) -> Iterator[tuple[dict, list[int]]]:
    """Yield (message, descriptors) of each part of "prepare"; ``document`` and ``region`` are descriptors."""
    names, step = list(listening), MAX_DESCRIPTORS - 2
    pieces = [names[start : start + step] for start in range(0, len(names), step)] or [[]]
    for part, piece in enumerate(pieces):
        message = {"prepare": number, "part": part, "parts": len(pieces), "names": piece}
        yield message, [*([document, region] if part == 0 else []), *(listening[name].fileno() for name in piece)]


class Receiver:
    """The worker's end: collects the parts of a change, prepares it, and uses or discards it."""

    def __init__(self, worker: Worker, channel):
        self._worker = worker
        self._channel = channel
        self._number = 0  # of the generation that is being prepared, else 0
        self._first: list[int] = []  # descriptors of the document and of the memory
        self._sockets: dict[str, socket.socket] = {}
        self._change: Any = None

    def receive(self, message: dict):
        """Act on a message from the supervisor; any other than those above is ignored."""
        if "prepare" in message:
            self._take_part(message)
        elif "use" in message and message["use"] == self._number:
            self._use(message["until"])
        elif "discard" in message:
            self.discard()

    def discard(self):
        """Forget the change that is being prepared, if there is one."""
        change, self._change, self._number = self._change, None, 0
        if change is not None:
            change.discard()
        listeners.close_all(self._sockets)
        self._close_first()

    def _close_first(self):
        while self._first:
            os.close(self._first.pop())

    def _take_part(self, message):
        number, names, descriptors = message["prepare"], message["names"], message.pop(DESCRIPTORS, [])
        if message["part"] == 0:
            self.discard()
            self._number = number
            self._first, descriptors = descriptors[:2], descriptors[2:]
        complete = len(self._first) == 2 and len(descriptors) == len(names) and number == self._number
        self._sockets.update(listeners.adopt(dict(zip(names, descriptors))))
        if not complete:
            self.discard()
            self._channel.send({"prepared": number, "refused": NOT_ARRIVED})
        elif message["part"] + 1 < message["parts"]:
            self._channel.send({"received": number, "part": message["part"]})
        else:
            self._prepare(number)

    def _prepare(self, number):
        try:
            config, region = self._open()
        except Exception as error:  # noqa: BLE001
            self._refuse(number, error)
            return
        try:
            self._change = config_change.prepare(self._worker, number, config, region, dict(self._sockets))
        except Exception as error:  # noqa: BLE001
            region.close()
            self._refuse(number, error)
            return
        self._sockets.clear()  # they are the change's now
        self._close_first()
        self._channel.send({"prepared": number})

    def _open(self):
        """Return (Config, Region) of what was received."""
        document, memory = self._first
        # The workers share the file offset.
        config, record = pickle.loads(os.pread(document, os.fstat(document).st_size, 0))
        region = Region(record, memory)
        self._first = [document]
        return config, region

    def _refuse(self, number, error):
        self.discard()
        self._channel.send({"prepared": number, "refused": _sentence(error)})

    def _use(self, until):
        number, change = self._number, self._change
        if self._worker.loop.now() > until:
            self.discard()
            self._channel.send({"using": number, "refused": TOO_LATE})
            return
        self._change, self._number = None, 0
        try:
            change.use()
        except Exception as error:  # noqa: BLE001
            self._worker.loop.log.event("defect", level="error", error=repr(error), trace=trace_lines(error))
            self._channel.send({"using": number, "refused": _sentence(error)})
            return
        self._channel.send({"using": number})


def _sentence(error):
    """Return what went wrong: the sentence of a refusal, or where an unexpected exception was raised."""
    if isinstance(error, (config_change.Refused, OSError)):
        return str(error)
    return f"internal error: {error!r} at {' '.join(trace_lines(error)[-3:])}"
