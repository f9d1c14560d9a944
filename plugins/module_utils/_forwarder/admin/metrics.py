# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The status document as Prometheus text (exposition format 0.0.4). Pure."""

from __future__ import annotations

from itertools import chain, islice

from ..backends.flapping import PAUSED
from ..counters.shared_memory import DISABLED, ENDED, FAILURES, LADDER, LATENCY_BOUNDS, REFUSED, STATES
from .first_tier import REASONS
from .kernel_services import FLOOD, in_kernel
from .status import draining_workers

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LINES = 500  # in one piece of the text
_ANSWERS = {"yes": 1, "not asked": -1}  # of probes and agents; else 0
_BACKEND_STATES = (*STATES, PAUSED, "draining", "maintenance", DISABLED)


def render(status):
    """Return the metrics of a status document."""
    return "".join(pieces(status))


def pieces(status):
    """Yield the metrics of a status document as text, some lines at a time."""
    found = lines(status)
    while some := list(islice(found, LINES)):
        yield "\n".join(some) + "\n"


def lines(status):
    """Yield the lines of the metrics of a status document, all samples of one metric in a row."""
    yield from _process(status)
    yield from _first_tier(status["first_tier"])
    yield from _events(status)
    services = [(_labels(service=service["name"]), service) for service in status["services"]]
    yield from _services(services)
    rows = [
        (_labels(service=service["name"], backend=backend["name"]), backend, service)
        for service in status["services"]
        for backend in service["backends"]
    ]
    yield from _backends([(labels, backend) for labels, backend, _service in rows])
    bounded = ((labels, backend["passed_over"]) for labels, backend, service in rows if service["hash_balance_factor"])
    text = "Connections that hash_balance_factor gave to another backend."
    yield from _metric("backend_passed_over_total", "counter", text, bounded)
    yield from _datagrams([(labels, backend) for labels, backend, service in rows if service["protocol"] == "udp"])
    targets = [
        (f"{labels},{_labels(family=family)}", target, service["protocol"])
        for labels, backend, service in rows
        for family, target in backend["families"].items()
    ]
    yield from _tcp([(labels, target) for labels, target, protocol in targets if protocol == "tcp"])
    yield from _targets([(labels, target) for labels, target, _protocol in targets])


def _metric(name, kind, text, samples):
    """Yield the lines of a metric: ``samples`` are (labels as text, value) or (suffix, labels as text, value)."""
    name = f"l4proxy_{name}"
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for *suffix, labels, value in samples:
        if value is None:  # what the kernel has counted is not known
            continue
        yield f"{name}{suffix[0] if suffix else ''}{{{labels}}} {value}" if labels else f"{name} {value}"


def _labels(**labels):
    """Return labels in the exposition format; callers do this once for many samples."""
    return ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())


def _escape(value):
    return str(value).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _process(status):
    live = [worker for worker in status["workers"] if worker["generation"] == status["generation"]]
    reload_ok = int(status["last_reload"]["ok"])
    for name, kind, text, samples in (
        (
            "build_info",
            "gauge",
            "Always 1; the label is the running version.",
            [(_labels(version=status["version"]), 1)],
        ),
        ("generation", "gauge", "Number of the live generation; each load adds 1.", [("", status["generation"])]),
        ("reloads_total", "counter", "Reloads, by result.", _by_label("result", status["reloads"])),
        ("last_reload_ok", "gauge", "1 if the last reload succeeded, else 0.", [("", reload_ok)]),
        ("restarts_total", "counter", "Workers and checkers that ended unexpectedly.", [("", status["restarts"])]),
        (
            "worker_up",
            "gauge",
            "1 if the worker of this slot is serving, else 0.",
            _by_label("slot", {worker["slot"]: int(worker["state"] == "serving") for worker in live}),
        ),
        ("checker_up", "gauge", "1 if the health checker runs, else 0.", [("", int(status["checker"] is not None))]),
        ("draining_workers", "gauge", "Workers that drain before they exit.", [("", draining_workers(status))]),
        *_old_generations(status["old_generations"]),
        (
            "drain_memory_ended_total",
            "counter",
            "Sessions of old generations that were ended because their workers used more than drain_memory.",
            [("", status["drain_memory_ended"])],
        ),
        *_denied(status["denied"]),
        (
            "state_saved",
            "gauge",
            "1 if drain states, weights and counters are saved, 0 if they could not be.",
            [("", int(status["state_file"]["error"] is None))] if status["state_file"] else [],
        ),
        (
            "local_delivery_alarm",
            "gauge",
            "Number of address families in which every return path is broken.",
            [("", len(status["alarms"]))],
        ),
    ):
        yield from _metric(name, kind, text, samples)


def _denied(denied):
    """Return the metrics of bans, for _process()."""
    files = denied.get("files", {})
    entries = _by_label(
        "source", {"bans": denied.get("bans", 0), **{path: one["networks"] for path, one in files.items()}}
    )
    loaded = _by_label("file", {path: int(not one["error"]) for path, one in files.items()})
    return [
        ("denied_entries", "gauge", "Networks that are refused: bans of operators, and of each file.", entries),
        ("deny_file_ok", "gauge", "1 if the file of denied networks is in effect as it is, else 0.", loaded),
    ]


def _first_tier(tier):
    tier = tier or {}
    healthy, reason = tier.get("healthy"), tier.get("reason")
    text = "1 if this proxy should get clients, else 0."
    yield from _metric("healthy", "gauge", text, [("", int(healthy))] if tier else [])
    text = "1 for the first reason why this proxy should not get clients, 0 for all others."
    reasons = _by_label("reason", {one: int(one == reason) for one in REASONS})
    yield from _metric("unhealthy_reason", "gauge", text, reasons if tier else [])
    text = "1 if an operator has withdrawn this proxy, else 0."
    yield from _metric("withdrawn", "gauge", text, [("", int(tier["withdrawn"] is not None))] if tier else [])
    text = "1 if this host has the virtual address, else 0."
    here = [
        (_labels(name=name, address=address), int(here))
        for name, addresses in tier.get("addresses", {}).items()
        for address, here in addresses.items()
    ]
    yield from _metric("virtual_address_here", "gauge", text, here)


def _events(status):
    for name, text in (
        ("accept_paused", "Times a worker paused accepting: out of resources, or a connection limit was reached."),
        ("defects", "Internal errors. Each ended a session or lost a datagram."),
        ("log_dropped", "Log lines dropped because the reader of the log was too slow."),
        ("datagrams_dropped", "UDP datagrams that the kernel refused to send."),
        ("datagrams_stray", "UDP datagrams received on an upstream socket that belong to no session."),
        ("removal_ended", "Sessions ended because their service, listener or backend had left the config."),
    ):
        yield from _metric(f"{name}_total", "counter", text, [("", status["totals"][name])])


def _old_generations(entries):
    """Return the metrics of the generations that drain, for _process()."""
    labels = [_labels(generation=entry["generation"], version=entry["version"] or "unknown") for entry in entries]
    return [
        (f"old_generation_{name}", "gauge", text, [(label, entry[field]) for label, entry in zip(labels, entries)])
        for name, field, text in (
            ("sessions", "sessions", "Open sessions of a generation that drains."),
            ("age_seconds", "age", "Time since the generation was replaced."),
            ("memory_bytes", "memory", "Memory of its workers."),
        )
    ]


def _by_label(key, values):
    """Return a sample for each value of a dictionary, labelled with its key."""
    return [(_labels(**{key: name}), value) for name, value in values.items()]


def _each(rows, field):
    """Yield a sample for each row."""
    return ((labels, row[field]) for labels, row in rows)


def _by(rows, prefix, key, names):
    """Yield a sample for each row and name: the value of the field PREFIX_NAME."""
    more = [(f"{prefix}_{name}", _labels(**{key: name})) for name in names]
    return ((f"{labels},{label}", row[field]) for labels, row in rows for field, label in more)


def _services(rows):
    yield from _metric("sessions", "gauge", "Open sessions.", _each(rows, "sessions"))
    yield from _metric("accepted_total", "counter", "Clients accepted.", _each(rows, "connections"))
    failed = ((labels, len(service["failed"])) for labels, service in rows)
    yield from _metric("listeners_failed", "gauge", "Listen addresses that could not be bound.", failed)
    kernel = [row for row in rows if in_kernel(row[1])]
    refused = chain(_by(rows, "refused", "cause", REFUSED), _by(kernel, "refused", "cause", [FLOOD]))
    yield from _metric("refused_total", "counter", "Clients refused, by cause.", refused)
    made_room = _each(rows, "made_room")
    yield from _metric("made_room_total", "counter", "UDP sessions ended to make room for new ones.", made_room)
    ended = _by(rows, "ended", "cause", ENDED)
    yield from _metric("ended_total", "counter", "Open sessions that the forwarder has ended, by cause.", ended)
    samples = ((labels, int(in_kernel(service))) for labels, service in rows)
    yield from _metric("service_in_kernel", "gauge", "1 if the kernel forwards the service, else 0.", samples)
    text = "Time since the keeper has counted the connections of a service that the kernel forwards."
    yield from _metric("kernel_numbers_age_seconds", "gauge", text, _each(kernel, "kernel_numbers_age"))
    steps = _by(rows, "source", "step", LADDER)
    yield from _metric("source_total", "counter", "Source address and port choices, by outcome.", steps)


def _backends(rows):
    spelled = [(state, _labels(state=state)) for state in _BACKEND_STATES]
    states = (
        (f"{labels},{label}", int(backend["state"] == state)) for labels, backend in rows for state, label in spelled
    )
    yield from _metric("backend_state", "gauge", "1 for the state that the backend is in, 0 for all others.", states)
    for name, kind, text, field in (
        ("backend_weight", "gauge", "Weight of the backend.", "weight"),
        ("backend_connections", "gauge", "Open connections to the backend.", "active"),
        ("backend_connections_total", "counter", "Connections opened to the backend.", "connections"),
        ("backend_sent_bytes_total", "counter", "Bytes sent to the backend.", "bytes_to_backend"),
        ("backend_received_bytes_total", "counter", "Bytes received from the backend.", "bytes_to_client"),
    ):
        yield from _metric(name, kind, text, _each(rows, field))
    lower = ((labels, backend["priority"]) for labels, backend in rows if backend["priority"])
    yield from _metric("backend_priority", "gauge", "Priority of the backend, if it is not the first (0).", lower)
    agents = [(labels, backend["agent"]) for labels, backend in rows if backend["agent"]]
    answers = ((labels, _ANSWERS.get(agent["answer"], 0)) for labels, agent in agents)
    yield from _metric("health_agent", "gauge", "Agent of the backend: 1 answered, 0 did not, -1 not asked.", answers)
    percents = ((labels, agent["weight"]) for labels, agent in agents if agent["weight"] is not None)
    yield from _metric("health_agent_weight_percent", "gauge", "Part of its weight that the agent asks for.", percents)
    failures = _by(rows, "failed", "cause", FAILURES)
    yield from _metric("backend_failures_total", "counter", "Failed connection attempts, by cause.", failures)


def _datagrams(rows):
    for name, text, field in (
        ("backend_sent_datagrams_total", "UDP datagrams sent to the backend.", "datagrams_to_backend"),
        ("backend_received_datagrams_total", "UDP datagrams received from the backend.", "datagrams_to_client"),
    ):
        yield from _metric(name, "counter", text, _each(rows, field))


def _tcp(rows):
    found = ((labels, target["rtt_microseconds"]) for labels, target in rows)
    rtt = ((labels, microseconds / 1e6) for labels, microseconds in found if microseconds is not None)
    text = "Smoothed round-trip time to the backend, an average of sampled connections."
    yield from _metric("rtt_seconds", "gauge", text, rtt)
    text = "TCP segments sent to the backend again, on sampled connections."
    yield from _metric("retransmitted_segments_total", "counter", text, _each(rows, "retransmits"))
    text = "Samples for rtt_seconds and retransmitted_segments_total: a connection at one moment each."
    yield from _metric("tcp_samples_total", "counter", text, _each(rows, "tcp_samples"))


def _targets(rows):
    for probe, text in (
        ("server", "Health probe from the proxy's own address: 1 answered, 0 failed, -1 not sent."),
        ("return_path", "Health probe from a spoofed address: 1 answered, 0 failed, -1 not sent."),
    ):
        samples = ((labels, _ANSWERS.get(target[probe], 0)) for labels, target in rows)
        yield from _metric(f"health_{probe}", "gauge", text, samples)
    for probe, field, source in (
        ("server", "server_failures", "the proxy's own address"),
        ("return_path", "path_failures", "a spoofed address"),
    ):
        text = f"Failed health probes from {source} (no answer, or a refusal)."
        yield from _metric(f"health_{probe}_failures_total", "counter", text, _each(rows, field))
    yield from _metric("health_checks_total", "counter", "Completed health checks.", _each(rows, "checks"))
    damped = [row for row in rows if "flaps" in row[1]]
    for name, text, field in (
        (
            "health_flaps",
            "How often the target went down shortly after it had come back, as far as it counts.",
            "flaps",
        ),
        ("health_paused_seconds", "Time until the target gets connections again after it has flapped.", "paused"),
    ):
        yield from _metric(name, "gauge", text, _each(damped, field))
    yield from _metric("connect_seconds", "histogram", "Duration of successful connects.", _histogram(rows))


def _histogram(rows):
    bounds = [_labels(le=f"{bound / 1e6:g}") for bound in LATENCY_BOUNDS] + [_labels(le="+Inf")]
    for labels, target in rows:
        latency, count = target["latency"], 0
        for bound, number in zip(bounds, latency["buckets"]):
            count += number
            yield "_bucket", f"{labels},{bound}", count
        yield "_sum", labels, latency["sum"] / 1e6
        yield "_count", labels, latency["count"]
