# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzz the parser of files of denied networks, and the table made of them: ``make fuzz SECONDS=60``.

Any bytes are networks, or Wrong, and raise nothing else. The first address of each network is in the table, and the one
before it only if another network has it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins"))
with atheris.instrument_imports():
    from module_utils._forwarder.admission import deny_table
    from module_utils._forwarder.process import deny_files

LOW = (1 << 64) - 1


def one_input(data: bytes) -> None:
    """Check one input; an exception is a finding."""
    keys: dict[str, list[int]] = {family: [] for family in deny_table.BITS}
    try:
        for family, key in deny_files.networks(data.splitlines(keepends=True)):
            keys[family].append(key)
    except deny_files.Wrong:
        return
    spans = {
        family: [(key >> 40, key >> 40 | (1 << bits - (key >> 32 & 255)) - 1) for key in keys[family]]
        for family, bits in deny_table.BITS.items()
    }
    memory = os.memfd_create("fuzz")
    deny_table.write({"": keys}, memory)
    table = deny_table.Table(memory)
    for family, found in spans.items():
        for address in {one for first, _last in found for one in (first, first - 1)} - {-1}:
            halves = (address,) if family == "ipv4" else (address >> 64, address & LOW)
            denied = table.scopes["", family].end_of(*halves) != 0
            if denied != any(first <= address <= last for first, last in found):
                raise RuntimeError(f"{family} address {address:#x}: {denied}")
    table.close()
    table.unmap()


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
