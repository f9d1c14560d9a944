# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The status document: what the forwarder does now, as JSON. The table, the page and the metrics are made from it.

{"pid", "version", "generation", "archive", "config", "loaded_at", "failed": {name of a socket: why it could not be
   bound}, "last_reload" (runtime_file.py), "reloads": {"ok", "failed"}, "restarts": int, "log_level": str,
 "state_file": {"path", "saved_at" (time of the last success), "error": why the last save failed or null}, or null,
 "hash_table" (null: no config is loaded),
 "first_tier": {"healthy": bool, "reason": code or null, "sentence" (first_tier.py: whether this proxy should get
   clients), "withdrawn": {"since", "reason"} or null, "addresses": {name: {virtual address: is it here}}},
 "alarms": [sentences], "totals": {field: int},
 "old_generations": [{"generation", "version", "archive", "loaded_at" (these three may be null), "age" (seconds since it
   was replaced), "workers", "sessions", "memory" (bytes), "seconds_left" (null: no deadline)}],
 "drain_memory_ended": int (sessions),
 "denied": {"bans": int (of operators), "networks": int (of files), "files": {path: {"networks", "loaded_at",
   "error"}}},
 "workers": [{"slot", "pid" (null: gone), "state", "generation", "age" (seconds), "covers": [slots], "sessions"}],
 "checker": {"pid", "hung": bool} or null,
 "services": [{"name", "protocol", "balance", "hash_balance_factor" (may be null), "listen": [str],
   "absent": [those of listen whose address this host does not have], "failed": {one of listen: why it could not be
   bound}, "datapath": "forwarder" or "kernel", "kernel_numbers_age": seconds or null, field: int …, "backends": [{
   "name", "port", "weight", "backup", "priority", "max_connections", "enabled", "admin", "state", "active",
   field: int …,
   "agent": {"word", "reason", "weight" (percent or null), "age" (seconds since it answered), "answer"} or null,
   "families": {"ipv4": {"address", "state", "since" (seconds), "server", "return_path", "checks",
     "server_failures", "path_failures", "latency": {"count", "sum" (µs), "buckets": [int]}, "rtt_microseconds" (null:
     no sample in the last minute), field: int …,
     and if the service has flap_pause: "flaps", "paused" (seconds until the pause ends)}}}]}]}

``state`` of a worker is starting, serving, draining, hung (its heartbeat is overdue) or gone. ``admin`` of a backend is
the operator's override, or else "disabled" if the config says so, or else "ready". ``state`` of a backend is ``admin``,
or if that is "ready" what its agent says, or else the worst state of its families. ``priority`` of a backup is null.
``server`` and ``return_path`` are the results of the two health probes: "yes", "no: REASON" (an errno, or as in
counters/probe_results.py) or "not asked". ``answer`` of an agent is like them; ``word`` is "" until it has spoken.

With ``datapath: kernel``, the numbers of a service and its backends are those of the kernel (kernel_services.py), and
of connections that the forwarder still has from before a change of the datapath. ``kernel_numbers_age`` says when the
keeper counted them, which it does every 5 s; null: a number that is not known. ``families`` have only the forwarder's.

Bytes and datagrams of open sessions are up to 5 s old. ``rtt_microseconds`` and the field ``retransmits`` (segments) of
a TCP backend are from samples, whose number is ``tcp_samples``: tcp/samples.py says which connections these are.
"""

from __future__ import annotations

import json
import os

from ..backends import flapping
from ..backends.agent_word import standing
from ..backends.health_state import LOCAL_DELIVERY
from ..config.defaults import FORWARDER
from ..counters import agent_state, heartbeat, shared_memory
from ..counters.agent_state import AgentWord
from ..counters.shared_memory import AVERAGES, LATENCY_FIELDS, SERVICE_FIELDS, TARGET_FIELDS, TIMES, WORKER_FIELDS
from ..loop import own_addresses
from . import kernel_services
from .snapshot import OldGeneration, Process, Snapshot

COUNTERS = tuple(name for name in TARGET_FIELDS if name not in (*TIMES, *AVERAGES, *LATENCY_FIELDS))
HUNG = "hung"
NOT_LOADED = "NOT LOADED"
READY, UP = "ready", shared_memory.STATES[shared_memory.UP]
_FROM_BEST_TO_WORST = (shared_memory.UNKNOWN, shared_memory.UP, shared_memory.BROKEN, shared_memory.DOWN)


def status(snapshot: Snapshot) -> dict:
    """Return the status document of a snapshot."""
    config = snapshot.config
    absent = own_addresses.absent(config.services) if config else {}
    worker_totals = snapshot.totals.of("worker", ())
    checker = snapshot.checker
    return {
        **snapshot.description,
        "pid": os.getpid(),
        "last_reload": snapshot.last_reload,
        "reloads": snapshot.reloads,
        "restarts": snapshot.restarts,
        "log_level": snapshot.log_level,
        "state_file": snapshot.state_file,
        "hash_table": config.used_hash_table if config else None,
        "first_tier": snapshot.first_tier,
        "alarms": [f"{family}: {LOCAL_DELIVERY}" for family in snapshot.region.common_causes()],
        "totals": {name: worker_totals.get(name, 0) for name in WORKER_FIELDS},
        "old_generations": [_old_generation(old, snapshot.now) for old in snapshot.old_generations],
        "drain_memory_ended": snapshot.drain_memory_ended,
        "denied": snapshot.denied,
        "workers": _workers(snapshot),
        "checker": {"pid": checker.pid, "hung": _hangs(checker)} if checker else None,
        "services": [_service(snapshot, service, absent) for service in config.services] if config else [],
    }


def first_tier_lines(document: dict) -> list[str]:
    """Return lines about the first tier: why this proxy should get no clients, and which virtual addresses it has."""
    tier = document.get("first_tier") or {}  # version 0.1.0 has none
    lines = [] if tier.get("healthy", True) else [tier["sentence"]]
    withdrawn = tier.get("withdrawn")
    if withdrawn:
        because = f": {withdrawn['reason']}" if withdrawn["reason"] else ""
        lines.append(f"withdrawn since {withdrawn['since']}{because}")
    for name, addresses in tier.get("addresses", {}).items():
        parts = [f"{address} {'is here' if here else 'is not here'}" for address, here in addresses.items()]
        lines.append(f"virtual address {name}: {', '.join(parts)}")
    return lines


def not_saved(document: dict) -> str | None:
    """Return a sentence if drain states, weights and counters could not be saved."""
    error = (document.get("state_file") or {}).get("error")  # version 0.1.0 has no state file
    return f"drain states, weights and counters are not saved, and lost at a stop or reboot: {error}" if error else None


def denied_lines(document: dict) -> list[str]:
    """Return a sentence about each file of denied networks, and about the bans of operators, if there are any."""
    denied = document.get("denied") or {}  # 0.1.0 has none
    lines = [deny_file_line(path, found) for path, found in denied.get("files", {}).items()]
    return [*lines, *([f"bans: {denied['bans']} (l4proxy denied)"] if denied.get("bans") else [])]


def deny_file_line(path: str, found: dict) -> str:
    """Return what is known of a file of denied networks, for people."""
    error = f"; {NOT_LOADED}: it {found['error']}" if found["error"] else ""
    since = f", loaded {found['loaded_at']}" if found["loaded_at"] else ""
    return f"deny file {path}: {found['networks']} networks{since}{error}"


def draining_workers(document: dict) -> int:
    """Return how many workers of a status document drain.

    Every worker of an older generation than the live one does. Those of a newer generation are starting.
    """
    live = document["generation"]
    return sum(worker["state"] == "draining" or worker["generation"] < live for worker in document["workers"])


def pieces(document):
    """Yield a status document as JSON text, one service at a time."""
    text = json.dumps({**document, "services": []})
    end = "]}"  # "services" is the last key
    yield text.removesuffix(end)
    for number, service in enumerate(document["services"]):
        yield f"{', ' if number else ''}{json.dumps(service)}"
    yield end


def _workers(snapshot):
    """Return the entries of all workers, newest generation first, and one for each slot that has no worker."""
    live = snapshot.description["generation"]
    entries = [_worker(process, snapshot.now) for process in snapshot.workers]
    served = {process.slot for process in snapshot.workers if process.generation == live}
    gone = {"pid": None, "state": "gone", "generation": live, "age": 0.0, "covers": [], "sessions": 0}
    entries += [{"slot": slot, **gone} for slot in range(snapshot.slots) if slot not in served]
    return sorted(entries, key=lambda worker: (-worker["generation"], worker["slot"]))


def _worker(process: Process, now):
    return {
        "slot": process.slot,
        "pid": process.pid,
        "state": HUNG if _hangs(process) else process.state,
        "generation": process.generation,
        "age": round(now - process.started, 1),
        "covers": process.covers,
        "sessions": process.sessions,
    }


def _old_generation(old: OldGeneration, now):
    return {
        "generation": old.number,
        "version": old.version,
        "archive": old.archive,
        "loaded_at": old.loaded_at,
        "age": round(now - old.since, 1),
        "workers": old.workers,
        "sessions": old.sessions,
        "memory": old.memory,
        "seconds_left": None if old.seconds_left is None else round(old.seconds_left, 1),
    }


def round_trips(backend):
    """Return the round-trip times of a backend in its families, such as 0.21 ms or 0.21 ms / -."""
    found = [family.get("rtt_microseconds") for family in backend["families"].values()]  # not of version 0.1.0
    texts = ["-" if number is None else f"{number / 1000:.3g} ms" for number in found]
    return " / ".join(texts) if any(number is not None for number in found) else "-"


def old_generation_line(entry: dict) -> str:
    """Return a sentence about an entry of ``old_generations``, for people."""
    left = entry["seconds_left"]
    parts = [
        f"{entry['workers']} worker{'' if entry['workers'] == 1 else 's'}",
        f"{entry['sessions']} session{'' if entry['sessions'] == 1 else 's'}",
        f"{entry['memory'] / (1 << 20):.0f} MiB",
        f"replaced {duration(entry['age'])} ago",
        "no deadline" if left is None else f"ends in {duration(left)}",
    ]
    return f"old generation {entry['generation']} ({entry['version'] or 'unknown version'}): {', '.join(parts)}"


def name_and_tier(backend: dict) -> str:
    """Return the name of an entry of ``backends``, and where it comes after others, for people."""
    if backend["backup"]:
        return f"{backend['name']} (backup)"
    priority = backend.get("priority")  # not of version 0.1.0
    return f"{backend['name']} (priority {priority})" if priority else backend["name"]


def agent_text(agent: dict) -> str:
    """Return what an ``agent`` has said last, and whether it still answers, for people."""
    said = f"{agent['word']} ({agent['reason']})" if agent["reason"] else agent["word"]
    parts = [part for part in (said, "" if agent["weight"] is None else f"{agent['weight']}%") if part]
    if agent["answer"] != "yes":
        silent = "" if agent["age"] is None else f" for {duration(agent['age'])}"
        parts.append(agent["answer"].replace("no:", f"no answer{silent}:"))
    return ", ".join(parts)


def pause_lines(service: dict) -> list[str]:
    """Return a sentence about each paused backend of an entry of ``services``, for people."""
    return [
        f"{backend['name']} ({family}) is paused for {target['paused']:.0f} s more: it has flapped"
        f" {target['flaps']} time{'' if target['flaps'] == 1 else 's'}"
        for backend in service["backends"]
        for family, target in backend["families"].items()
        if target.get("paused")
    ]


def duration(seconds: float) -> str:
    """Return a duration in its greatest unit: "40 s", "5 min", "3 h", "2 d"."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _hangs(process: Process):
    return (process.silent or 0) > heartbeat.SUSPECT


def _service(snapshot, service, absent):
    counters = snapshot.totals.of("service", (service.name,))
    entry = {
        "name": service.name,
        "protocol": service.protocol,
        "balance": service.balance,
        "hash_balance_factor": service.hash_balance_factor,
        "listen": [str(listener) for listener in service.listen],
        "absent": absent.get(service.name, []),
        "failed": snapshot.failed.get(service.name, {}),
        "datapath": service.datapath or FORWARDER,
        "kernel_numbers_age": None,
        **{name: counters.get(name, 0) for name in SERVICE_FIELDS},
        "backends": [_backend(snapshot, service, backend) for backend in service.backends],
    }
    return _with_kernel(entry, snapshot.kernel) if service.in_kernel else entry


def _with_kernel(entry, kernel):
    """Return the entry of a service with what the kernel has counted, besides the forwarder's open connections."""
    age = kernel.age
    entry["kernel_numbers_age"] = None if age is None else round(age, 1)
    refused = {f"refused_{cause}": number for cause, number in kernel.refused(entry["name"]).items()}
    for name, number in refused.items():
        entry[name] = kernel_services.added(entry.get(name, 0), number)
    numbers = {}
    for backend in entry["backends"]:
        numbers[backend["name"]] = found = kernel.backend(entry["name"], backend["name"], entry["protocol"] == "udp")
        for name, number in found.items():
            backend[name] = kernel_services.added(backend[name], number)
    for name, field in (("sessions", "active"), ("connections", "connections")):
        parts = [found[field] for found in numbers.values()]
        entry[name] = kernel_services.added(entry[name], None if None in parts else sum(parts))
    return entry


def _backend(snapshot, service, backend):
    numbers = snapshot.region.targets_of[service.name, backend.name]
    families = {family: _target(snapshot, number, service.health) for family, number in numbers.items()}
    for family, target in families.items():
        target["address"] = backend.address(family)
    override = snapshot.overrides.of(service.name, backend.name)
    admin = override.get("state", shared_memory.DISABLED if backend.disabled else READY)
    worst = max((target.pop("health") for target in families.values()), key=_FROM_BEST_TO_WORST.index)
    first = next(iter(numbers.values()))
    asked = service.health.agent and agent_state.in_region(snapshot.region)
    word = agent_state.read(snapshot.region, first) if asked else None
    return {
        "name": backend.name,
        "port": backend.port,
        "weight": override.get("weight", backend.weight),
        "backup": backend.backup,
        "priority": None if backend.backup else backend.tier,
        "max_connections": backend.max_connections,
        "enabled": not backend.disabled,
        "admin": admin,
        "state": _state(admin, worst, word or AgentWord(), override, families.values()),
        "agent": _agent(snapshot, first, word) if word else None,
        **{name: sum(target[name] for target in families.values()) for name in COUNTERS},
        "families": families,
    }


def _state(admin, health, word, override, targets):
    """Return what is shown as the state of a backend."""
    if admin != READY:
        return admin
    state = standing(word, shared_memory.READY, health, 1, override.get("weight", 0)).state
    paused = state == UP and any(target["state"] == flapping.PAUSED for target in targets)
    return flapping.PAUSED if paused else state


def _agent(snapshot, number, word):
    answered = snapshot.region.state("agent_answered", number)
    return {
        "word": str(word),
        "reason": word.reason,
        "weight": word.percent,
        "age": round(snapshot.now - answered / 1000, 1) if answered else None,
        "answer": agent_state.answer(snapshot.region, number),
    }


def _target(snapshot, number, health_check):
    region = snapshot.region
    health, since = region.state("health", number), region.state("since", number)
    state = shared_memory.STATES[health]
    flaps, pauses = flapping.of_target(region, number, health_check), {}
    if flaps is not None:
        paused = max(0.0, flaps.back_at - snapshot.now)
        pauses = {"flaps": flaps.remembered(snapshot.now), "paused": round(paused, 1)}
        state = flapping.PAUSED if paused and state == UP else state
    counters = snapshot.totals.of("target", region.targets[number])
    buckets = [counters.get(name, 0) for name in LATENCY_FIELDS]
    return {
        "health": health,
        "state": state,
        "since": round(snapshot.now - since / 1000, 1) if since else None,
        "server": region.probe_result("server", number),
        "return_path": region.probe_result("path", number),
        **pauses,
        **{name: region.state(name, number) for name in ("checks", "server_failures", "path_failures")},
        **{name: counters.get(name, 0) for name in COUNTERS},
        "rtt_microseconds": snapshot.totals.round_trips.get(region.targets[number]),
        "latency": {
            "buckets": buckets,
            "count": sum(buckets),
            "sum": counters.get("connect_microseconds", 0),
        },
    }
