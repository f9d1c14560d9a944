# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Open connections at a steady rate, one request each, and record the result of each.

    python load.py RATE SECONDS ADDRESS:PORT [ADDRESS:PORT ...]

Prints one line of JSON for each: {"port", "at": seconds since the epoch, "seconds": duration, "error": null or the
reason}. It ends after SECONDS; a connection that takes longer than PATIENCE has failed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

# A lost SYN is sent again after 1 s (TCP_TIMEOUT_INIT), which is still a success.
PATIENCE = 2.5
REQUEST = b"GET / HTTP/1.0\r\n\r\n"


async def exchange(host: str, port: int) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(REQUEST)
        answer = await reader.read()
        if b" 200 " not in answer[:15]:
            raise ConnectionError(f"answered {answer[:40]!r}")
    finally:
        writer.transport.abort()


async def connection(host: str, port: int) -> None:
    at, started, error = time.time(), time.monotonic(), None
    try:
        await asyncio.wait_for(exchange(host, port), PATIENCE)
    except (OSError, asyncio.TimeoutError) as failure:
        error = f"{type(failure).__name__} {failure}".strip()
    print(json.dumps({"port": port, "at": at, "seconds": time.monotonic() - started, "error": error}), flush=True)


async def main(rate: float, seconds: float, targets: list[tuple[str, int]]) -> None:
    running: set[asyncio.Task] = set()
    started = time.monotonic()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
        task = asyncio.create_task(connection(*targets[number % len(targets)]))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)


if __name__ == "__main__":
    pairs = [target.rpartition(":") for target in sys.argv[3:]]
    addresses = [(host.strip("[]"), int(port)) for host, _colon, port in pairs]
    asyncio.run(main(float(sys.argv[1]), float(sys.argv[2]), addresses))
