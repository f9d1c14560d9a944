# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The status document: what the forwarder does now, as JSON. Table, page and metrics are made from it.

{"pid", "version", "generation", "archive", "config", "loaded_at", "last_reload", "reloads": {"ok", "failed"},
 "restarts": int, "log_level": str, "alarms": [sentences], "totals": {field: int},
 "workers": [{"slot", "pid" (null: gone), "state", "generation", "age" (seconds), "covers": [slots], "sessions"}],
 "checker": {"pid", "hung": bool} or null,
 "services": [{"name", "protocol", "balance", "listen": [str], "absent": [those of listen whose
   address this host does not have], field: int …, "backends": [{
   "name", "port", "weight", "backup", "max_connections", "admin", "state", "active", field: int …,
   "families": {"ipv4": {"address", "state", "since" (seconds), "server", "return_path", "checks",
     "server_failures", "path_failures", "latency": {"count", "sum" (µs), "buckets": [int]}, field: int …}}}]}]}

``state`` of a worker is starting, serving, draining, hung (it gives no sign of life) or gone. ``state`` of a backend is
an operator's word, or else the worst of its families; ``server`` and ``return_path`` are "yes", "no: ERRNO" or "not
asked".
"""

from __future__ import annotations

import json
import os

from ..backends.health_checker import LOCAL_DELIVERY
from ..counters import heartbeat, shared_memory
from ..counters.shared_memory import LATENCY_FIELDS, SERVICE_FIELDS, TARGET_FIELDS, TIMES, WORKER_FIELDS
from ..loop import own_addresses
from ..process.children import CHECKER, WORKER

COUNTED = tuple(name for name in TARGET_FIELDS if name not in TIMES and name not in LATENCY_FIELDS)
HUNG = "hung"
_WORST = (shared_memory.UNKNOWN, shared_memory.UP, shared_memory.BROKEN, shared_memory.DOWN)


def status(supervisor):
    """Return the status document of a supervisor."""
    serving, totals, now = supervisor.serving, supervisor.totals(), supervisor.now()
    config = serving.config
    absent = own_addresses.absent(config.services) if config else {}
    told = totals.of("worker", ())
    return {
        **serving.description(),
        "pid": os.getpid(),
        "last_reload": supervisor.last_reload,
        "reloads": supervisor.reloads,
        "restarts": supervisor.pool.restarts,
        "log_level": supervisor.log.level,
        "alarms": [f"{family}: {LOCAL_DELIVERY}" for family in serving.region.common_causes()],
        "totals": {name: told.get(name, 0) for name in WORKER_FIELDS},
        "workers": sorted(_workers(supervisor, now), key=_order),
        "checker": next(
            (_checker(supervisor, c) for c in supervisor.pool.of(serving.number) if c.role == CHECKER), None
        ),
        "services": [_service(supervisor, service, totals, now, absent) for service in config.services]
        if config
        else [],
    }


def pieces(document):
    """Yield a status document as JSON text, a service at a time."""
    text = json.dumps({**document, "services": []})
    end = "]}"  # of the services, which are the last key
    yield text.removesuffix(end)
    for number, service in enumerate(document["services"]):
        yield f"{', ' if number else ''}{json.dumps(service)}"
    yield end


def _checker(supervisor, child):
    return {"pid": child.pid, "hung": (supervisor.pool.silent(child) or 0) > heartbeat.SUSPECT}


def _workers(supervisor, now):
    """Return every worker, old ones included, and an entry without a pid for each slot that has none."""
    serving = supervisor.serving
    found = [_worker(supervisor, child, now) for child in supervisor.pool.children.values() if child.role == WORKER]
    there = {one["slot"] for one in found if one["generation"] == serving.number}
    gone = {"pid": None, "state": "gone", "generation": serving.number, "age": 0.0, "covers": [], "sessions": 0}
    return found + [{"slot": slot, **gone} for slot in range(serving.slots) if slot not in there]


def _order(worker):
    return -worker["generation"], worker["slot"]


def _worker(supervisor, child, now):
    region = supervisor.draining.get(child.generation)
    if child.generation == supervisor.serving.number:
        region = supervisor.serving.region
    return {
        "slot": child.slot,
        "pid": child.pid,
        "state": HUNG if (supervisor.pool.silent(child) or 0) > heartbeat.SUSPECT else child.state,
        "generation": child.generation,
        "age": round(now - child.started, 1),
        "covers": child.covers,
        "sessions": region.sessions(child.slot) if region else 0,
    }


def _service(supervisor, service, totals, now, absent):
    counted = totals.of("service", (service.name,))
    return {
        "name": service.name,
        "protocol": service.protocol,
        "balance": service.balance,
        "listen": [str(listener) for listener in service.listen],
        "absent": absent.get(service.name, []),
        **{name: counted.get(name, 0) for name in SERVICE_FIELDS},
        "backends": [_backend(supervisor, service, backend, totals, now) for backend in service.backends],
    }


def _backend(supervisor, service, backend, totals, now):
    region = supervisor.serving.region
    numbers = region.targets_of[service.name, backend.name]
    families = {family: _target(region, number, totals, now) for family, number in numbers.items()}
    for family, found in families.items():
        found["address"] = backend.address(family)
    order = supervisor.overrides.of(service.name, backend.name)
    worst = max((found.pop("health") for found in families.values()), key=_WORST.index)
    return {
        "name": backend.name,
        "port": backend.port,
        "weight": order.get("weight", backend.weight),
        "backup": backend.backup,
        "max_connections": backend.max_connections,
        "admin": order.get("state", "ready"),
        "state": order.get("state", shared_memory.STATES[worst]),
        **{name: sum(found[name] for found in families.values()) for name in COUNTED},
        "families": families,
    }


def _target(region, number, totals, now):
    health, since = region.state("health", number), region.state("since", number)
    counted = totals.of("target", region.targets[number])
    buckets = [counted.get(name, 0) for name in LATENCY_FIELDS]
    return {
        "health": health,
        "state": shared_memory.STATES[health],
        "since": round(now - since / 1000, 1) if since else None,
        "server": region.told("server", number),
        "return_path": region.told("path", number),
        **{name: region.state(name, number) for name in ("checks", "server_failures", "path_failures")},
        **{name: counted.get(name, 0) for name in COUNTED},
        "latency": {
            "buckets": buckets,
            "count": sum(buckets),
            "sum": counted.get("connect_microseconds", 0),
        },
    }
