# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The file in which the checker says which backends of kernel services serve. The keeper (root) reads and applies it.

{"schema": 1, "services": {"web": {"b": "up", "c": "down", "d": {"ipv4": "up", "ipv6": "out"}}}}

``up``: it gets new connections. ``out``: it gets none and keeps its open ones (an operator or the config has taken it
out, its return path is broken, or it is paused). ``down``: as out, and on_down applies. A backend of which nothing is
known yet is not mentioned: what was published last still holds. The file is replaced as a whole, and only if it would
change. From when a service is mentioned, the kernel gets its new connections, even while the forwarder still has a
socket for them: so it is mentioned before the forwarder closes its listeners.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..._shared.families import FAMILIES
from ..counters.shared_memory import BROKEN, DOWN, EPOCH_ADMIN, EPOCH_HEALTH, READY, UNKNOWN
from ..counters.shared_memory import UP as HEALTHY
from . import flapping

if TYPE_CHECKING:
    from ..config.config import Config
    from ..config.service import Service
    from ..counters.shared_memory import Region
    from ..loop.log import Log

SCHEMA = 1
NAME = "backends.json"  # in the runtime directory
UP, OUT, DOWN_WORD = "up", "out", "down"
RETRY = 1.0  # seconds until the next attempt to write the file
LOOK = 1.0  # seconds between two looks whether the file is still the one that was written
_WORDS = {UNKNOWN: UP, HEALTHY: UP, BROKEN: OUT, DOWN: DOWN_WORD}


class PublishedStates:
    """Publishes at ``path`` what ``region`` says of the kernel services of ``config``."""

    def __init__(self, config: Config, region: Region, path: str, log: Log) -> None:
        self._services = [service for service in config.services if service.in_kernel]
        self._region = region
        self._path = path
        self._log = log
        self._published = _read(path)
        self._file = _identity(path)
        self._epoch = -1
        self._due = 0.0  # when the states may change by the clock
        self._next_look = 0.0
        self._failed = False

    def publish(self, now: float) -> None:
        """Write the file if a state has changed; ``now`` is in monotonic seconds."""
        cells = self._region.cells
        epoch = cells[EPOCH_HEALTH] + cells[EPOCH_ADMIN]
        lost = bool(self._services) and now >= self._next_look and self._file != _identity(self._path)
        if now >= self._next_look:
            self._next_look = now + LOOK
        if epoch == self._epoch and now < self._due and not lost:
            return
        self._epoch, self._due = epoch, float("inf")
        states = {service.name: self._of_service(service, now) for service in self._services}
        if states == self._published and not lost:
            return
        try:
            write(self._path, {"schema": SCHEMA, "services": states})
        except OSError as error:
            self._due = now + RETRY
            if not self._failed:
                self._log.event("states not published", level="error", path=self._path, reason=str(error))
            self._failed = True
            return
        self._published, self._failed, self._file = states, False, _identity(self._path)

    def _of_service(self, service: Service, now: float) -> dict[str, Any]:
        found: dict[str, dict[str, str]] = {backend.name: {} for backend in service.backends}
        for family in FAMILIES:
            for name, word in self._of_family(service, family, now).items():
                if word is not None:
                    found[name][family] = word
        states: dict[str, Any] = {}
        for backend in service.backends:
            words = found[backend.name]
            everywhere = len(words) == sum(bool(backend.address(family)) for family in FAMILIES)
            same = everywhere and len({*words.values()}) == 1
            if words:
                states[backend.name] = next(iter(words.values())) if same else words
        return states

    def _of_family(self, service: Service, family: str, now: float) -> dict[str, str | None]:
        """Return {name: state, None if nothing is known} of the backends with an address of ``family``."""
        region, backends = self._region, service.backends_of(family)
        numbers = [region.targets_of[service.name, backend.name][family] for backend in backends]
        words = [self._word(service, number) for number in numbers]
        health = [region.state("health", number) for number in numbers]
        ready = [
            index
            for index, number in enumerate(numbers)
            if region.state("admin", number) == READY and not backends[index].disabled
        ]
        usable = [index for index in ready if words[index] in (UP, None)]
        unusable = len(ready) - len(usable)
        if not usable:  # only clients can find out whether a return path is as broken as it is for the probes
            usable = [index for index in ready if health[index] == BROKEN]
        for index in usable:
            words[index] = words[index] and UP
        kept_out = self._kept_out(service, {index: numbers[index] for index in usable}, len(ready), unusable, now)
        for index in kept_out if len(kept_out) < len(usable) else ():
            words[index] = OUT
        for index in {*range(len(numbers))} - {*ready}:
            # With try_all, the keeper uses what is down, but not what an operator has taken out.
            resets = health[index] == DOWN and service.resets_on_down and service.on_all_down == "refuse"
            words[index] = DOWN_WORD if resets else OUT
        return {backend.name: word for backend, word in zip(backends, words)}

    def _word(self, service, number):
        """Return what the checks say of a target. Without a result yet, that is what was published last."""
        health = self._region.state("health", number)
        if health != UNKNOWN or not service.checked:
            return _WORDS[health]
        _service, backend, family = self._region.targets[number]
        said = self._published.get(service.name, {}).get(backend)
        word = said.get(family) if isinstance(said, dict) else said
        return word if word in _WORDS.values() else None

    def _kept_out(self, service, numbers, ready, unusable, now):
        """Return the indexes of ``numbers``, {index: target}, that are paused, as far as health.max_out allows."""
        if not (service.health.flap_pause and flapping.in_region(self._region)):
            return frozenset()
        ends = {index: self._region.state("back_at", number) / 1000 for index, number in numbers.items()}
        paused = {index: end for index, end in ends.items() if end > now}
        self._due = min([self._due, *paused.values()])
        doubts = {index: (False, self._region.state("flaps", numbers[index])) for index in paused}
        return flapping.kept_out(doubts, service.health.max_out, ready, unusable)


def _read(path: str) -> dict[str, Any]:
    """Return the services of a file; {} if there is no valid one."""
    try:
        with open(path, "rb") as stream:
            services = json.load(stream)["services"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: said for name, said in services if isinstance(said, dict)}


def _identity(path: str) -> tuple[int, int] | None:
    """Return what tells a file from one that has replaced it, None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def write(path: str, document: dict[str, Any]) -> None:
    """Replace a file that the keeper reads, readable by all. Raise OSError."""
    temporary = f"{path}.{os.getpid()}.new"
    try:
        with open(temporary, "w", encoding="utf-8") as stream:
            json.dump(document, stream)
            os.fchmod(stream.fileno(), 0o644)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise
