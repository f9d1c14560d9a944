# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ask the forwarder on its admin socket whether this proxy should get clients, without waiting for the answer.

The forwarder's admin/first_tier.py says what the answer has. Other programs ask the same by ``l4proxy healthy``.
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import NamedTuple

REQUEST = b'{"op": "healthy"}\n'
MAX_ANSWER = 1 << 16
WITHDRAWN = "withdrawn"  # the reason of a proxy that is healthy, but that an operator has withdrawn


class Verdict(NamedTuple):
    """``reason`` is a word of the forwarder, None without one; ``sentence`` is for people."""

    healthy: bool
    reason: str | None
    sentence: str


class Question:
    """One question. ``fault`` says why it could not be asked or was not answered; it is empty until that is known."""

    def __init__(self, path: str):
        self.fault = ""
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(path)
            self._socket.send(REQUEST)
        except (FileNotFoundError, ConnectionError):
            self.fault = f"no forwarder listens on {path}"
        except OSError as error:  # among them EAGAIN: more clients than the forwarder can queue
            self.fault = f"{path}: {error.strerror}"

    def fileno(self) -> int:
        return self._socket.fileno()

    def verdict(self) -> Verdict | None:
        """The answer; None if there is none yet, or never (``fault``)."""
        try:
            while not self.fault and not self._received.endswith(b"\n"):
                data = self._socket.recv(MAX_ANSWER)
                if not data or len(self._received) > MAX_ANSWER:
                    raise ConnectionResetError
                self._received += data
        except BlockingIOError:
            return None
        except OSError:
            self.fault = "the forwarder closed the connection without an answer"
        return None if self.fault else _read(self._received)

    def close(self) -> None:
        self._socket.close()


def _read(line: bytes) -> Verdict:
    with contextlib.suppress(ValueError, AttributeError):
        answer = json.loads(line)
        # A forwarder that is too old to know the question refuses it.
        sentence = str(answer.get("sentence") or answer.get("error"))
        return Verdict(answer.get("healthy") is True, answer.get("reason"), sentence)
    return Verdict(False, None, "the forwarder's answer is not JSON")
