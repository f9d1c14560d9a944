# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A tunnel between two hosts of the lab, with TUN devices as of WireGuard or a VPN: they have no MAC addresses."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import threading
from collections.abc import Iterator
from typing import Any

# linux/if_tun.h
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def _device(host: Any, name: str, addresses: tuple[str, ...]) -> int:
    with host.inside():
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    for address in addresses:
        host.run(["ip", "address", "add", address, "dev", name, *(["nodad"] if ":" in address else [])])
    host.run(["ip", "link", "set", name, "up"])
    return descriptor


@contextlib.contextmanager
def tunnel(one: Any, other: Any, name: str = "wg0", number: int = 8) -> Iterator[None]:
    """Devices ``name`` on both hosts, with 10.NUMBER.0.1 and .2, and fd00:NUMBER::1 and ::2."""
    ends = [
        _device(host, name, (f"10.{number}.0.{last}/24", f"fd00:{number}::{last}/64"))
        for host, last in ((one, 1), (other, 2))
    ]
    stop, stopper = os.pipe()

    def carry() -> None:
        while stop not in (ready := select.select([*ends, stop], [], [])[0]):
            for end in ready:
                with contextlib.suppress(OSError):
                    os.write(ends[1 - ends.index(end)], os.read(end, 65536))

    carrier = threading.Thread(target=carry, daemon=True)
    carrier.start()
    try:
        yield
    finally:
        os.write(stopper, b"x")
        carrier.join()
        for descriptor in (*ends, stop, stopper):
            os.close(descriptor)
