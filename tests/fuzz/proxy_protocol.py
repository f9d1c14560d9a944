# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzz the parser of PROXY headers: ``make fuzz SECONDS=60``.

Any bytes are a header, an incomplete header, or MalformedHeader, and raise nothing else. The first half gives the same
result, or is incomplete. Inputs that reach new code are saved in .build/fuzz; copy useful ones to tests/fuzz/corpus.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins"))
with atheris.instrument_imports():
    from module_utils._forwarder.tcp import proxy_protocol


def outcome(data: bytes) -> object:
    """Return the result of parse(); for MalformedHeader its class, because its text may depend on the length."""
    try:
        return proxy_protocol.parse(data)
    except proxy_protocol.MalformedHeader:
        return proxy_protocol.MalformedHeader


def one_input(data: bytes) -> None:
    """Check one input; an exception is a finding."""
    whole = outcome(data)
    early = outcome(data[: len(data) // 2])
    if early is not None and early != whole:
        raise RuntimeError(f"the first half gives {early}, the whole input {whole}")
    if isinstance(whole, proxy_protocol.Header) and whole.source is not None:
        rebuilt = proxy_protocol.build("v2", whole.source, whole.source_port, whole.destination, whole.destination_port)
        again = proxy_protocol.parse(rebuilt)
        if (again.source, again.destination) != (whole.source, whole.destination):
            raise RuntimeError(f"{whole} became {again}")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
