# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The status document as Prometheus text (exposition format 0.0.4). Pure."""

from __future__ import annotations

from itertools import islice

from ..counters.shared_memory import FAILURES, LADDER, LATENCY_BOUNDS, REFUSED, STATES

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LINES = 500  # of a piece
_BACKEND_STATES = (*STATES, "draining", "maintenance")


def render(status):
    """Return the metrics of a status document."""
    return "".join(pieces(status))


def pieces(status):
    """Yield the metrics of a status document as text, some lines at a time."""
    found = lines(status)
    while some := list(islice(found, LINES)):
        yield "\n".join(some) + "\n"


def draining(status):
    """Return how many workers end: those of a generation that is not yet ready begin."""
    workers = status["workers"]
    return sum(one["state"] == "draining" or one["generation"] < status["generation"] for one in workers)


def lines(status):
    """Yield the lines of the metrics of a status document; the samples of a metric stay together."""
    yield from _process(status)
    services = [(_labels(service=service["name"]), service) for service in status["services"]]
    yield from _services(services)
    rows = [
        (_labels(service=service["name"], backend=backend["name"]), backend)
        for service in status["services"]
        for backend in service["backends"]
    ]
    yield from _backends(rows)
    targets = [
        (f"{labels},{_labels(family=family)}", target)
        for labels, backend in rows
        for family, target in backend["families"].items()
    ]
    yield from _targets(targets)


def _metric(name, kind, text, samples):
    """Yield the lines of a metric: ``samples`` are (labels as text, value) or (suffix, labels as text, value)."""
    name = f"l4proxy_{name}"
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for *suffix, labels, value in samples:
        yield f"{name}{suffix[0] if suffix else ''}{{{labels}}} {value}" if labels else f"{name} {value}"


def _labels(**labels):
    """Spell labels, for each of many samples once."""
    return ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())


def _escape(value):
    return str(value).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _process(status):
    def one(name, kind, text, value, labels=""):
        return _metric(name, kind, text, [(labels, value)])

    yield from one("build_info", "gauge", "The version that serves.", 1, _labels(version=status["version"]))
    yield from one("generation", "gauge", "How many times a config was loaded.", status["generation"])
    reloads = [(_labels(result=result), count) for result, count in status["reloads"].items()]
    yield from _metric("reloads_total", "counter", "Reloads by result.", reloads)
    ok = int(status["last_reload"]["ok"])
    yield from one("last_reload_ok", "gauge", "Whether the last reload succeeded.", ok)
    yield from one("restarts_total", "counter", "Workers and checkers that ended by themselves.", status["restarts"])
    serving = [worker for worker in status["workers"] if worker["generation"] == status["generation"]]
    workers = [(_labels(slot=worker["slot"]), int(worker["state"] == "serving")) for worker in serving]
    yield from _metric("worker_up", "gauge", "Whether a worker slot is served by its own worker.", workers)
    yield from one("checker_up", "gauge", "Whether the checker runs.", int(status["checker"] is not None))
    yield from one("draining_workers", "gauge", "Workers that end.", draining(status))
    alarms = len(status["alarms"])
    yield from one("local_delivery_alarm", "gauge", "Whether no return path at all is whole.", alarms)
    for name, text in (
        ("accept_paused", "Times a worker stopped accepting for lack of resources."),
        ("defects", "Sessions ended by an internal error."),
        ("log_dropped", "Log lines dropped because their reader was slow."),
        ("datagrams_dropped", "UDP datagrams the kernel did not take."),
        ("datagrams_stray", "UDP datagrams to an upstream socket that belong to no session."),
    ):
        yield from one(f"{name}_total", "counter", text, status["totals"][name])


def _each(rows, field):
    """Yield a sample of each row."""
    return ((labels, row[field]) for labels, row in rows)


def _by(rows, prefix, key, names):
    """Yield a sample of each row and name, from the field PREFIX_NAME."""
    more = [(f"{prefix}_{name}", _labels(**{key: name})) for name in names]
    return ((f"{labels},{label}", row[field]) for labels, row in rows for field, label in more)


def _services(rows):
    yield from _metric("sessions", "gauge", "Sessions that are open.", _each(rows, "sessions"))
    yield from _metric("accepted_total", "counter", "Clients accepted.", _each(rows, "connections"))
    refused = _by(rows, "refused", "cause", REFUSED)
    yield from _metric("refused_total", "counter", "Clients turned away, by cause.", refused)
    made_room = _each(rows, "made_room")
    yield from _metric("made_room_total", "counter", "UDP sessions ended to have room for new ones.", made_room)
    yield from _metric("source_total", "counter", "Steps of the source ladder.", _by(rows, "source", "step", LADDER))


def _backends(rows):
    spelled = [(state, _labels(state=state)) for state in _BACKEND_STATES]
    states = (
        (f"{labels},{label}", int(backend["state"] == state)) for labels, backend in rows for state, label in spelled
    )
    yield from _metric("backend_state", "gauge", "The state of a backend: 1 for the one it is in.", states)
    for name, kind, text, field in (
        ("backend_weight", "gauge", "Its weight.", "weight"),
        ("backend_connections", "gauge", "Connections it has.", "active"),
        ("backend_connections_total", "counter", "Connections made to it.", "connections"),
        ("backend_sent_bytes_total", "counter", "Bytes sent to it (ended connections).", "bytes_to_backend"),
        ("backend_received_bytes_total", "counter", "Bytes received from it (ended connections).", "bytes_to_client"),
    ):
        yield from _metric(name, kind, text, _each(rows, field))
    failures = _by(rows, "failed", "cause", FAILURES)
    yield from _metric("backend_failures_total", "counter", "Connects that failed, by cause.", failures)


def _targets(rows):
    answers = {"yes": 1, "not asked": -1}
    for question in ("server", "return_path"):
        samples = ((labels, answers.get(target[question], 0)) for labels, target in rows)
        yield from _metric(f"health_{question}", "gauge", "A health question: 1 yes, 0 no, -1 not asked.", samples)
    for question, field in (("server", "server_failures"), ("return_path", "path_failures")):
        name = f"health_{question}_failures_total"
        yield from _metric(name, "counter", "Answers that stayed away.", _each(rows, field))
    yield from _metric("health_checks_total", "counter", "Rounds of questions.", _each(rows, "checks"))
    yield from _metric("connect_seconds", "histogram", "How long connects took.", _histogram(rows))


def _histogram(rows):
    bounds = [_labels(le=f"{bound / 1e6:g}") for bound in LATENCY_BOUNDS] + [_labels(le="+Inf")]
    for labels, target in rows:
        latency, count = target["latency"], 0
        for bound, number in zip(bounds, latency["buckets"]):
            count += number
            yield "_bucket", f"{labels},{bound}", count
        yield "_sum", labels, latency["sum"] / 1e6
        yield "_count", labels, latency["count"]
