# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long tests wait. L4PROXY_TEST_PATIENCE=3 waits three times as long, for a machine that is busy or slow."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

FACTOR = float(os.environ.get("L4PROXY_TEST_PATIENCE", "1"))
#: Seconds until a test fails because something that should happen has not happened.
PATIENCE = 20.0 * FACTOR


def eventually(
    condition: Callable[[], Any],
    expected: str = "",
    explain: Callable[[], str] = lambda: "",
    *,
    patience: float = PATIENCE,
    interval: float = 0.01,
) -> Any:
    """Return the first true value of ``condition()``; after ``patience`` seconds fail, and show ``explain()``."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {patience:g} s: {expected or value!r}\n{explain()}"
        time.sleep(interval)
    return value


def in_threads(work: Callable[[int], Any], count: int, patience: float = 3 * PATIENCE) -> list[Any]:
    """Run ``work(index)`` in ``count`` threads; return the results in order, raise the first error."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count), timeout=patience))
