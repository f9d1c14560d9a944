# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzz what health checks read from servers and their agents: ``make fuzz SECONDS=60``.

The first byte of an input chooses the check, the rest is what the server sends before it closes. Any bytes have a
result, and raise nothing. In pieces they have the same result, if it does not depend on when TLS finds the end.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins"))
with atheris.instrument_imports():
    from module_utils._forwarder.backends import agent_word, health_exchange, health_tls
    from module_utils._forwarder.config.health_exchange import HealthHttp, HealthTls
    from module_utils._forwarder.counters import probe_results

JUDGES = (
    health_exchange.Beginning(b"SSH-2.0-"),
    health_exchange.StatusLine(HealthHttp().statuses()),
    health_exchange.Search(re.compile(rb"^220[ -].*\n"), 100),
)


def begin(kind: int) -> object:
    """Return a new exchange."""
    judge = JUDGES[kind % len(JUDGES)]
    inner = health_exchange.Exchange(b"", judge)
    return inner if kind % 4 < len(JUDGES) else health_tls.TlsExchange(HealthTls(), inner, b"")


def outcome(kind: int, data: bytes, size: int) -> int:
    """Return the result of an answer that arrives in pieces."""
    health_exchange.stopwatch.new_turn()
    exchange = begin(kind)
    for place in range(0, len(data), size):
        result = exchange.received(data[place : place + size])
        if result is not None:
            return result
    exchange.expired()
    result = exchange.received(b"")
    exchange.farewell()
    return result


def one_input(data: bytes) -> None:
    """Check one input; an exception is a finding."""
    kind, rest = data[0] if data else 0, data[1:]
    whole, pieces = outcome(kind, rest, 16384), outcome(kind, rest, 7)
    if whole is None or not probe_results.name(whole):
        raise RuntimeError(f"{whole} is no result")
    if kind % 4 < len(JUDGES) and whole != pieces:
        raise RuntimeError(f"the result is {whole}, in pieces {pieces}")
    word = agent_word.parse(rest)
    if word is not None and not (word.reason.isascii() and word.reason.isprintable()):
        raise RuntimeError(f"the reason of an agent is {word.reason!r}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
