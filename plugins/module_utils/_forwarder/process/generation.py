# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A generation: one loaded config, its listeners and the memory its processes share."""

from __future__ import annotations

import resource
from dataclasses import dataclass, field

from ..._version import VERSION
from ..admin import runtime_file
from ..admin.endpoint import METRICS
from ..config import config as config_module
from ..config import defaults
from ..counters import shared_memory
from . import listeners


class LoadError(Exception):
    """The config cannot be served; ``errors`` lists every reason."""

    def __init__(self, errors):
        super().__init__("; ".join(errors))
        self.errors = list(errors)


@dataclass
class Generation:
    """``number`` counts loads from 1; ``bound`` names the listeners that were bound for it.

    ``region`` is the memory its processes share; it outlives them until its numbers have been taken over.
    """

    number: int
    config: config_module.Config | None  # None: of another version, which this one cannot read
    config_file: dict  # {"path", "sha256"}
    archive: dict | None  # {"path", "sha256"}
    slots: int
    region: shared_memory.Region
    version: str = VERSION
    loaded_at: str = ""
    bound: list = field(default_factory=list)
    endpoints: dict = field(default_factory=dict)  # new sockets of the admin server and the metrics, by name
    warnings: list = field(default_factory=list)

    def description(self):
        """Return the part of the runtime file that is about what serves."""
        return {
            "generation": self.number,
            "version": self.version,
            "config": self.config_file,
            "archive": self.archive,
            "loaded_at": self.loaded_at,
        }

    @property
    def drain_timeout(self):
        """Seconds its workers have for draining."""
        return self.config.drain_timeout if self.config else defaults.DRAIN_TIMEOUT.default

    def record(self):
        """Return what the next program must know of this generation, as JSON."""
        document = config_module.dump(self.config) if self.config else None
        region = {"fd": self.region.fd, "record": self.region.record}
        return {"description": self.description(), "config": document, "slots": self.slots, "region": region}

    @classmethod
    def recorded(cls, record):
        """Return the generation of a record()."""
        told = record["description"]
        try:
            known = config_module.load(record["config"])
        except config_module.ConfigError:
            known = None
        return cls(
            number=told["generation"],
            config=known,
            config_file=told["config"],
            archive=told["archive"],
            slots=record["slots"],
            region=shared_memory.Region(record["region"]["record"], record["region"]["fd"]),
            version=told["version"],
            loaded_at=told["loaded_at"],
        )


def load(path, number, archive, held, endpoints, alone=False):
    """Return the Generation of the config at ``path``; its missing listeners are bound and added to ``held``.

    ``endpoints`` is the Endpoints of the supervisor. Metrics that cannot be served are an error, for an address was
    asked for; an admin socket that cannot be is only a warning. ``alone``: nobody of ours can be listening yet. Raise
    LoadError; ``held`` is then as it was.
    """
    try:
        with open(path, "rb") as stream:
            text = stream.read()
        loaded = config_module.parse(text, path)
    except config_module.ConfigError as error:
        raise LoadError(error.errors) from None
    except OSError as error:
        raise LoadError([f"{path}: cannot be read: {error.strerror}"]) from None
    slots = listeners.slots_of(loaded)
    too_many = listeners.beyond_limit(loaded, slots, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    if too_many:
        raise LoadError([too_many])
    bound, servers = {}, {}
    try:
        bound = listeners.bind_missing(loaded, slots, held, alone)
        servers, failures = endpoints.bind_missing(loaded)
        errors = [failure.sentence for failure in failures if failure.kind == METRICS]
        if errors:
            raise LoadError(errors)
        region = shared_memory.Region(shared_memory.describe(loaded, slots))
    except BaseException as error:
        for sock in (*bound.values(), *servers.values()):
            sock.close()
        if isinstance(error, listeners.ListenError):
            raise LoadError([error.strerror]) from None
        raise
    held.update(bound)
    return Generation(
        number=number,
        config=loaded,
        config_file={"path": path, "sha256": runtime_file.sha256(text)},
        archive=archive,
        slots=slots,
        region=region,
        bound=list(bound),
        endpoints=servers,
        warnings=[failure.sentence for failure in failures],
    )


def recorded_regions(records):
    """Return {number: Region} of generations that still drain, from {number as text: record}."""
    return {int(number): shared_memory.Region(record["record"], record["fd"]) for number, record in records.items()}


def abandon(generation, held):
    """Close what was made for a generation that will not serve."""
    for name in generation.bound:
        held.pop(name).close()
    for sock in generation.endpoints.values():
        sock.close()
    generation.region.close()
