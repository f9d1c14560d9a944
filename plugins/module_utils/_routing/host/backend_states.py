# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the forwarder's checker says of the backends of kernel services: a file that an unprivileged user writes.

    {"schema": 1, "services": {"web": {"b": "up", "c": "down", "d": {"ipv4": "up", "ipv6": "out"}}}}

``up``: gets new connections. ``out``: gets none, and keeps its open ones. ``down``: gets none, and does not answer.
Of a backend that is not mentioned nothing is known yet, for example because the forwarder has just been started: what
was said of it last holds (``after``). Services that are not mentioned are not handed over to the kernel yet, or are the
forwarder's again.
Whoever can write the file can switch declared backends on and off, and nothing else: links are not followed, nothing
blocks, size and depth are bounded, and ``of_service`` ignores what no document declares. No error quotes the content.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..._shared.paths import BACKEND_STATES
from ..document.kernel_service import KernelService

SCHEMA = 1
UP, OUT, DOWN = STATES = ("up", "out", "down")
MOST_BYTES = 1 << 20
MOST_REMEMBERED = 65536
# Not blocked by a FIFO, nor by a lease that the owner of the file has taken (fcntl(2)).
FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True)
class States:
    """``services``: the state of each named backend, or its states by family, by service and name.

    Empty without a (valid) file: all serve. ``fault``: what is wrong with the file, as a sentence; None also if there
    is no file.
    """

    services: Mapping[str, Mapping[str, Mapping[str, str] | str]] = field(default_factory=dict)
    fault: str | None = None

    def after(self, before: States) -> States:
        """These states, and what ``before`` says of backends that they do not mention, of the same services."""
        services = {name: {**before.services.get(name, {}), **said} for name, said in self.services.items()}
        return States(services, self.fault)

    def is_handed_over(self, service: KernelService) -> bool:
        """Whether the forwarder mentions a service: it has no listener for it, or closes that soon.

        Until then, a socket for a packet comes before the kernel datapath.
        """
        return service.name in self.services

    def of_service(self, service: KernelService) -> dict[str, str]:
        """The states of a service's backends, by name. A backend that is not mentioned is up."""
        said = self.services.get(service.name, {})
        found = {server.name: said.get(server.name, UP) for server in service.servers}
        return {name: it if isinstance(it, str) else it.get(service.family, UP) for name, it in found.items()}

    def serving(self, service: KernelService) -> frozenset[str]:
        """The names of the backends that get new connections: those of the lowest tier that has one."""
        states = self.of_service(service)
        ready = [server for server in service.servers if server.enabled and states[server.name] != OUT]
        up = [server for server in ready if states[server.name] == UP]
        if not up and service.on_all_down == "try_all":
            up = ready
        tier = min((server.tier for server in up), default=0)
        return frozenset(server.name for server in up if server.tier == tier)

    def unknown(self, services: Iterable[KernelService]) -> list[str]:
        """The services, and the backends as SERVICE/BACKEND, that these services do not have: at most 10 of them."""
        declared: dict[str, set[str]] = {}
        for service in services:
            declared.setdefault(service.name, set()).update(server.name for server in service.servers)
        names = [name for name in self.services if name not in declared]
        for name in declared:
            names += [f"{name}/{backend}" for backend in self.services.get(name, {}) if backend not in declared[name]]
        # Escaped, because they go into a log.
        return [ascii(name[:100])[1:-1] for name in sorted(names)[:10]]


NONE_PUBLISHED = States()


def read(path: str = BACKEND_STATES) -> States:
    """The published states; none if there is no file, or if it is not a valid one."""
    try:
        descriptor = os.open(path, FLAGS)
    except FileNotFoundError:
        return NONE_PUBLISHED
    except OSError as error:
        return States(fault=f"{path} is ignored: {error.strerror}")
    try:
        return States(_services(content(descriptor, MOST_BYTES)))
    except OSError as error:
        return States(fault=f"{path} is ignored: {error.strerror}")
    except ValueError as error:
        return States(fault=f"{path} is ignored: {error}")
    finally:
        os.close(descriptor)


class Reader:
    """Reads the states, and remembers what is not mentioned any more: systemd removes the file at a restart."""

    def __init__(self, path: str = BACKEND_STATES) -> None:
        self.path = path
        self._last = NONE_PUBLISHED

    def __call__(self) -> States:
        """The states that hold now."""
        new = read(self.path)
        if new.fault or new is NONE_PUBLISHED:
            return States(self._last.services, new.fault)
        merged = new.after(self._last)
        # Or whoever writes the file could fill the memory of this process.
        self._last = merged if sum(map(len, merged.services.values())) <= MOST_REMEMBERED else new
        return self._last


def content(descriptor: int, most: int) -> bytes:
    """The content of a file of at most ``most`` bytes; ValueError if it is none, or longer."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise ValueError("it is not a regular file")
    pieces: list[bytes] = []
    left = most + 1
    while left > 0:
        piece = os.read(descriptor, left)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        left -= len(piece)
    raise ValueError(f"it is longer than {most} bytes")


def _services(content: bytes) -> dict[str, dict[str, Mapping[str, str] | str]]:
    try:
        # Numbers stay text: a long one would take minutes to convert.
        data = json.loads(content, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        raise ValueError("it is not valid JSON") from None
    if not isinstance(data, dict) or data.get("schema") != str(SCHEMA):
        raise ValueError(f"it does not have schema {SCHEMA}")
    services = data.get("services")
    if not isinstance(services, dict):
        raise ValueError("services is not an object")
    return {name: _known(said) for name, said in services.items() if isinstance(said, dict)}


def _known(said: dict[str, object]) -> dict[str, Mapping[str, str] | str]:
    """Without states of later versions: such a backend counts as up."""
    known: dict[str, Mapping[str, str] | str] = {}
    for name, state in said.items():
        if isinstance(state, dict):
            known[name] = {family: one for family, one in state.items() if _is_state(one)}
        elif isinstance(state, str) and _is_state(state):
            known[name] = state
    return known


def _is_state(state: object) -> bool:
    return isinstance(state, str) and state in STATES
