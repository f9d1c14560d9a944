# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A generation: one loaded config, its listeners and its worker, from the file on disk to the process that is ready."""

from __future__ import annotations

from dataclasses import dataclass, field

from .._version import VERSION
from . import config as config_module
from . import listeners, runtime
from .children import Child


class LoadError(Exception):
    """The config cannot be served; ``errors`` lists every reason."""

    def __init__(self, errors):
        super().__init__("; ".join(errors))
        self.errors = list(errors)


@dataclass
class Generation:
    """``number`` counts loads from 1; ``bound`` names the listeners that were bound for it."""

    number: int
    config: config_module.Config | None  # None: of another version, which this one cannot read
    config_file: dict  # {"path", "sha256"}
    archive: dict | None  # {"path", "sha256"}
    version: str = VERSION
    loaded_at: str = ""
    bound: list = field(default_factory=list)
    worker: Child | None = None

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
        """Seconds its worker has for draining."""
        return self.config.drain_timeout if self.config else config_module.DEFAULT_DRAIN_TIMEOUT

    def record(self):
        """Return what the next program must know of this generation, as JSON."""
        document = config_module.dump(self.config) if self.config else None
        return {"description": self.description(), "config": document}

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
            version=told["version"],
            loaded_at=told["loaded_at"],
        )


def load(path, number, archive, held):
    """Return the Generation of the config at ``path``; its missing listeners are bound and added to ``held``.

    Raise LoadError; ``held`` is then as it was.
    """
    try:
        with open(path, "rb") as stream:
            text = stream.read()
        loaded = config_module.parse(text, path)
        bound = listeners.bind_missing(loaded, held)
    except config_module.ConfigError as error:
        raise LoadError(error.errors) from None
    except listeners.ListenError as error:
        raise LoadError([error.strerror]) from None
    except OSError as error:
        raise LoadError([f"{path}: cannot be read: {error.strerror}"]) from None
    held.update(bound)
    return Generation(
        number=number,
        config=loaded,
        config_file={"path": path, "sha256": runtime.sha256(text)},
        archive=archive,
        bound=list(bound),
    )


def abandon(generation, held):
    """Close what was bound for a generation that will not serve."""
    for name in generation.bound:
        held.pop(name).close()
