# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a new config or archive would change on a running forwarder, and what the last change did. Pure.

Both are lists of sentences for people, made from the status document of the running forwarder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..config.config import Config
from ..config.defaults import STOP_TIMEOUT
from ..config.service import Service
from .kernel_services import in_kernel

NONE, START, RELOAD, UPGRADE, RESTART = ACTIONS = ("none", "start", "reload", "upgrade", "restart")


class Leaving(NamedTuple):
    """Sessions that a new config ends: of a service, or of one of its backends."""

    what: str  # a sentence
    sessions: int
    seconds: float  # until they are ended


class Plan(NamedTuple):
    """``action`` is one of ACTIONS. ``sessions`` end because of it, in ``seconds`` at the latest (None: none end)."""

    action: str
    sentences: list[str]
    sessions: int = 0
    seconds: float | None = None


def plan(status: Mapping[str, Any] | None, old: Config | None, new: Config, archive: str | None, restart: bool) -> Plan:
    """Return what the new config would change.

    :param status: the status document; None: no forwarder runs.
    :param old: the config that runs; None: unknown.
    :param archive: the name of the new archive; None: that which runs.
    :param restart: whether the forwarder is restarted in any case.
    """
    if status is None:
        return Plan(START, ["the forwarder does not run and is started"])
    if not (restart or archive or old != new):
        return Plan(NONE, [])
    leaving = [*_leaving(status, old, new), *_other_datapath(status, new), *_switched(status, new)]
    ended = [one for one in leaving if one.sessions]
    number, seconds = sum(one.sessions for one in ended), max((one.seconds for one in ended), default=None)
    if not (archive or restart):
        rest = "all other connections stay" if ended else "all connections stay"
        sentences = [f"a new config is loaded; {rest}", *map(_sentence, leaving), *_moving(old, new)]
        return Plan(RELOAD, sentences, number, seconds)
    why = [f"upgrade from {_running(status)} to {archive}"] if archive else []
    why += ["a changed unit restarts the forwarder"] if restart else []
    total = sum(worker["sessions"] for worker in status["workers"])
    sentence, deadline = _old_processes(status, old, total, bool(ended))
    details = [_sentence(one) if deadline is None else one.what for one in leaving]
    if deadline is not None:
        number, seconds = total, deadline if total else None
    return Plan(RESTART if restart else UPGRADE, [*why, sentence, *details, *_moving(old, new)], number, seconds)


def report(status: Mapping[str, Any]) -> list[str]:
    """Return what the last load of a config did, and which old generations still serve connections."""
    last, sentences = status["last_reload"], []
    if not last["ok"]:
        sentences.append(f"the last reload failed, and the config before it still serves: {last['error']}")
    elif last.get("in_place"):
        sentences.append("the config was taken in place: no process was replaced")
    elif last.get("new_processes_because"):
        sentences.append(f"new processes serve the config, because {last['new_processes_because']}")
    else:
        sentences.append(f"new processes serve the config: generation {status['generation']} ({status['version']})")
    return sentences + [
        f"old generation {old['generation']} ({old['version'] or 'unknown version'}) still serves "
        f"{_count(old['sessions'])}{_until(old['seconds_left'])}"
        for old in status.get("old_generations", ())
    ]


def _is_early(status: Mapping[str, Any]) -> bool:
    """Whether the forwarder that runs is of version 0.1.0."""
    return "in_place" not in status["last_reload"]


def _old_processes(
    status: Mapping[str, Any], old: Config | None, total: int, some_leave: bool
) -> tuple[str, float | None]:
    """Return a sentence about the connections of the processes that are replaced, and their deadline in seconds.

    ``some_leave``: what some of them belong to leaves the config.
    """
    timeout = old.drain_timeout if old else None
    if _is_early(status):
        timeout = STOP_TIMEOUT if timeout is None else timeout
        rule = "the version that runs ends them after its own drain timeout; to give them longer, set "
        rule += "forwarder_drain_timeout and deploy that version once more before the upgrade"
        return f"{_count(total)} {_end(total)} in {timeout:g} s at the latest: {rule}", timeout
    if timeout is None:
        kept = "all other connections" if some_leave else f"their {_count(total)}"
        return f"the old processes serve {kept} until these end", None
    return f"{_count(total)} {_end(total)} in {timeout:g} s at the latest (forwarder_drain_timeout)", timeout


def _leaving(status: Mapping[str, Any], old: Config | None, new: Config) -> Iterator[Leaving]:
    """Yield what leaves the config, in the order of the status document."""
    before = {service.name: service for service in old.services} if old else {}
    after = {service.name: service for service in new.services}
    for entry in status["services"]:
        name, service = entry["name"], after.get(entry["name"])
        timeout = STOP_TIMEOUT
        if old and name in before:
            timeout = old.removal_timeout(before[name])
        if service is None or service.protocol != entry["protocol"]:
            number = sum(_active(backend) for backend in entry["backends"])
            yield Leaving(f"service {name} is removed", number, timeout)
            continue
        for address in set(entry["listen"]) - {str(listener) for listener in service.listen}:
            yield Leaving(f"service {name} no longer listens on {address}", 0, timeout)
        for backend in entry["backends"]:
            number = sum(
                family["active"] for key, family in backend["families"].items() if _left(service, backend, key)
            )
            if number or all(_left(service, backend, key) for key in backend["families"]):
                yield Leaving(f"backend {backend['name']} leaves service {name}", number, timeout)


def _active(backend: Mapping[str, Any]) -> int:
    """Return the connections that the forwarder has to a backend, without those of the kernel."""
    return sum(family["active"] for family in backend["families"].values())


def _other_datapath(status: Mapping[str, Any], new: Config) -> Iterator[Leaving]:
    """Yield a sentence, which ends no connection, for each service that changes its datapath."""
    after = {(service.name, service.protocol): service.in_kernel for service in new.services}
    for entry in status["services"]:
        before, key = in_kernel(entry), (entry["name"], entry["protocol"])
        if after.get(key, before) != before:
            new_one, old_one = ("forwarder", "kernel") if before else ("kernel", "forwarder")
            what = f"the {new_one} forwards service {entry['name']}; open TCP connections stay with the {old_one}"
            yield Leaving(what, 0, 0.0)


def _switched(status: Mapping[str, Any], new: Config) -> Iterator[Leaving]:
    """Yield a sentence, which ends no session, for each backend that the new config disables, or enables again."""
    after = {(service.name, one.name): one.disabled for service in new.services for one in service.backends}
    for service in status["services"]:
        for entry in service["backends"]:
            before, key = not entry.get("enabled", True), (service["name"], entry["name"])  # not of version 0.1.0
            if after.get(key, before) != before:
                verb = "gets new connections again" if before else "gets no new connections (enabled: false)"
                yield Leaving(f"backend {entry['name']} of service {service['name']} {verb}", 0, 0.0)


def _moving(old: Config | None, new: Config) -> Iterator[str]:
    """Yield a sentence if another hash table moves clients to other backends."""
    if old is None or old.used_hash_table == new.used_hash_table:
        return
    before = {service.name for service in old.services if service.balance == "source_hash"}
    number = sum(service.balance == "source_hash" and service.name in before for service in new.services)
    if number:
        yield (
            f"l4proxy_hash_table changes from {old.used_hash_table} to {new.used_hash_table}: new connections of most "
            f"clients of {number} service{'' if number == 1 else 's'} with source_hash go to another backend"
        )


def _left(service: Service, entry: Mapping[str, Any], family: str) -> bool:
    """Whether the service no longer has a backend of the status document in this family; its address may change."""
    return not any(
        (backend.name, backend.port) == (entry["name"], entry["port"]) and backend.address(family)
        for backend in service.backends
    )


def _sentence(leaving: Leaving) -> str:
    if not leaving.sessions:
        return leaving.what
    return f"{leaving.what}: {_count(leaving.sessions)} {_end(leaving.sessions)} in {leaving.seconds:g} s at the latest"


def _running(status: Mapping[str, Any]) -> str:
    archive = status.get("archive") or {}
    return str(archive.get("path") or status["version"]).rpartition("/")[2]


def _count(number: int) -> str:
    return f"{number} connection{'' if number == 1 else 's'}"


def _end(number: int) -> str:
    return "ends" if number == 1 else "end"


def _until(seconds: float | None) -> str:
    return "" if seconds is None else f", for {seconds:.0f} s at the latest"
