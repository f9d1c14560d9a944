# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is shown of services that the kernel forwards: its numbers, which the keeper publishes every 5 s.

{"schema": 1, "time": 1764268800.0 (Unix time), "services": {"web": {
   "refused": {"denied": 0, "limited": 0, "no_backend": 0, "flood": 0},
   "backends": {"b": {"connections": 7 (since the counter exists), "open": 2, "bytes_in": 0, "bytes_out": 0,
                      "packets_in": 0, "packets_out": 0}}}}}

``in`` is to the backend. Bytes are those of IP packets. A number that is not known is None: it is never shown as 0,
because somebody may wait for that.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..._shared.families import family_of
from ..._shared.paths import DATAPATH_COUNTERS
from ..config.backend_names import matches

if TYPE_CHECKING:
    from ..config.service import Service

SCHEMA = 1
STALE = 20.0  # seconds after which numbers are those of a keeper that has stopped
MOST_BYTES = 16 << 20
FLOOD = "flood"  # a cause of refusals that the forwarder does not have: more new connections than conntrack can take
CAUSES = ("denied", "limited", "no_backend", FLOOD)
_FIELDS = {
    "connections": "connections",
    "active": "open",
    "bytes_to_backend": "bytes_in",
    "bytes_to_client": "bytes_out",
    "datagrams_to_backend": "packets_in",
    "datagrams_to_client": "packets_out",
}


class KernelNumbers(NamedTuple):
    """The numbers of each service by name, and their age in seconds (None: there are none)."""

    services: Mapping[str, Any] = {}
    age: float | None = None

    def refused(self, service: str) -> dict[str, int | None]:
        """Return the refused connections of a service by cause."""
        found = _section(self.services.get(service), "refused")
        return {cause: _number(found, cause) for cause in CAUSES}

    def backend(self, service: str, backend: str, datagrams: bool) -> dict[str, int | None]:
        """Return the numbers of a backend by their names in the status document."""
        found = _section(_section(self.services.get(service), "backends"), backend)
        return {
            name: _number(found, key) for name, key in _FIELDS.items() if datagrams or not name.startswith("datagrams")
        }


NO_NUMBERS = KernelNumbers()


def read(path: str = DATAPATH_COUNTERS, now: float | None = None) -> KernelNumbers:
    """Return the published numbers; none if there is no valid file, or if they are too old."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return NO_NUMBERS
            document = json.loads(stream.read(MOST_BYTES))
        age = max(0.0, (time.time() if now is None else now) - document["time"])
        services = document["services"] if document["schema"] == SCHEMA else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return NO_NUMBERS
    return KernelNumbers(services if age <= STALE and isinstance(services, dict) else {}, age)


def _section(value: Any, key: str) -> Mapping[str, Any]:
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _number(section: Mapping[str, Any], key: str) -> int | None:
    value = section.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def added(first: int, second: int | None) -> int | None:
    """Return the sum of what the forwarder and the kernel have counted, None if the kernel's part is not known."""
    return None if second is None else first + second


def known(number: int | None) -> str:
    """Return a number as text, "-" for one that is not known."""
    return "-" if number is None else str(number)


def in_kernel(service: Mapping[str, Any]) -> bool:
    """Whether an entry of ``services`` in a status document is forwarded by the kernel; 0.1.0 does not have the key."""
    return service.get("datapath") == "kernel"


def age_text(service: Mapping[str, Any]) -> str:
    """Return a sentence about the numbers of such an entry, for people."""
    age = service["kernel_numbers_age"]
    if age is None:
        return "the kernel forwards it; its numbers are not known: the keeper has published none"
    if age > STALE:
        return f"the kernel forwards it; its numbers are not known: the keeper published the last ones {age:.0f} s ago"
    return f"the kernel forwards it; the keeper counted its connections {age:.0f} s ago"


def conntrack(service: Service, backend: str | None, client: str | None) -> list[str]:
    """Return the options with which conntrack(8) selects the connections of a service, one text for each address.

    With ``backend``, the name of one, and ``client``, an address or a network, only those.
    """
    texts = []
    for listener in service.listen:
        servers = [one for one in service.backends_of(listener.family) if backend is None or matches(backend, one.name)]
        if not servers or (client is not None and family_of(client) != listener.family):
            continue
        parts = ["-f", listener.family, "-p", service.protocol, "--orig-dst", listener.address]
        parts += ["--orig-port-dst", str(listener.port), *(["--orig-src", client] if client else [])]
        ends = [["--reply-src", str(one.address(listener.family))] for one in servers] if backend else [[]]
        texts += [" ".join([*parts, *end]) for end in ends]
    return texts


def pointers(services: Mapping[str, list[str]], command: str) -> list[str]:
    """Return how to list ("-L") or end ("-D") connections that the kernel has: {service: what conntrack() returned}."""
    verb = "list" if command == "-L" else "end"
    return [
        f"the kernel has the connections of service {name}; {verb} them with: conntrack {command} {options}"
        for name, found in services.items()
        for options in found
    ]
