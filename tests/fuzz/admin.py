# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzz the parsers of admin requests and HTTP requests: ``make fuzz SECONDS=60``.

Any bytes, in two pieces: each line gets one line of JSON as its answer, at most one incomplete line is left, no
exception is raised, and the override of a backend has only known keys.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins"))
with atheris.instrument_imports():
    from module_utils._forwarder.admin import commands, protocols
    from module_utils._forwarder.counters import overrides
    from module_utils._forwarder.process import deny_lists
from module_utils._forwarder.config.config import Config
from module_utils._forwarder.config.service import Backend, Service

CONFIG = Config(proxy_id=1, services=(Service("web", (), (Backend(name="b", ipv4="198.18.0.21", port=80),)),))


class Client:
    """Stands for connection.Connection: collects what a handler writes."""

    def __init__(self) -> None:
        self.closed = False
        self.written = b""

    def write(self, data: bytes, last: bool = False) -> None:
        self.written += data
        self.closed = self.closed or last


def nothing(*_arguments: object, **_named: object) -> None:
    """Replace what the forwarder does outside of the parser."""


class Forwarder:
    """A forwarder (commands.Forwarder) without workers."""

    config = CONFIG

    def __init__(self) -> None:
        self.overrides = overrides.Overrides()
        loop, live = SimpleNamespace(log=SimpleNamespace(event=nothing)), SimpleNamespace(config=CONFIG)
        pool = SimpleNamespace(children={}, denied=(0, ()))
        self.deny_lists = deny_lists.DenyLists(loop, SimpleNamespace(live=live), pool, None)
        self.deny_lists.publish = nothing
        self.log = SimpleNamespace(level="info", event=nothing)
        self.publish_overrides = self.set_log_level = self.call_later = nothing

    def snapshot(self) -> object:
        return self

    def save(self, then: Callable[[None], object]) -> None:
        then(None)

    def ask_workers(self, _question: dict, _generation: int | None = None) -> set[int]:
        return set()

    def generations(self) -> list[int]:
        return [1]

    def end_generation(self, _number: int) -> int | None:
        return None


commands.status = lambda _snapshot: {"services": []}


def ask(handle: object, data: bytes) -> tuple[Client, bytearray]:
    """Give a handler the data in two pieces, as Connection.ready() does."""
    client, buffer = Client(), bytearray()
    for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
        if not client.closed:
            buffer += piece
            while not client.closed and handle(client, buffer):
                pass
    return client, buffer


def one_input(data: bytes) -> None:
    """Check one input; an exception is a finding."""
    forwarder = Forwarder()
    client, rest = ask(protocols.line_handler(commands.Admin(forwarder).answer), data)
    replies = [json.loads(line) for line in client.written.splitlines()]
    if len(replies) != data.count(b"\n") or b"\n" in rest:
        raise RuntimeError(f"{data.count(10)} requests, {len(replies)} answers, {bytes(rest)!r} left")
    for reply in replies:
        if reply["ok"] is not True and not isinstance(reply["error"], str):
            raise RuntimeError(f"{reply} is not an answer")
    for table in forwarder.deny_lists.tables.values():
        table.close()
    if not forwarder.overrides.of("web", "b").keys() <= {"state", "weight"}:
        raise RuntimeError(f"{forwarder.overrides.of('web', 'b')} is not an override")
    client, _rest = ask(protocols.http_handler(lambda path: ("200 OK", "text/plain", iter([path]))), data)
    if client.written and not client.written.startswith(b"HTTP/1.0 "):
        raise RuntimeError(f"{client.written!r} is not a response")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
