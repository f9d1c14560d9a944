# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The status document as Prometheus text (exposition format 0.0.4). Pure."""

from __future__ import annotations

from .shared import FAILURES, LADDER, LATENCY_BOUNDS, REFUSED, STATES

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BACKEND_STATES = (*STATES, "draining", "maintenance")


class Exposition:
    """Gathers samples of one metric after the other; a metric's samples must stay together."""

    def __init__(self):
        self._lines = []

    def metric(self, name, kind, text, samples):
        """Add a metric: ``samples`` are (labels, value) or (suffix, labels, value)."""
        name = f"l4proxy_{name}"
        self._lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        for *suffix, labels, value in samples:
            spelled = ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())
            self._lines.append(f"{name}{''.join(suffix)}{{{spelled}}} {value}" if spelled else f"{name} {value}")

    def text(self):
        """Return the whole exposition."""
        return "\n".join(self._lines) + "\n"


def _escape(value):
    return str(value).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def render(status):
    """Return the metrics of a status document."""
    out = Exposition()
    _process(out, status)
    _services(out, status["services"])
    rows = [
        ({"service": service["name"], "backend": backend["name"]}, backend)
        for service in status["services"]
        for backend in service["backends"]
    ]
    _backends(out, rows)
    targets = [
        ({**labels, "family": family}, target)
        for labels, backend in rows
        for family, target in backend["families"].items()
    ]
    _targets(out, targets)
    return out.text()


def _process(out, status):
    out.metric("build_info", "gauge", "The version that serves.", [({"version": status["version"]}, 1)])
    out.metric("generation", "gauge", "How many times a config was loaded.", [({}, status["generation"])])
    reloads = [({"result": result}, count) for result, count in status["reloads"].items()]
    out.metric("reloads_total", "counter", "Reloads by result.", reloads)
    out.metric(
        "last_reload_ok", "gauge", "Whether the last reload succeeded.", [({}, int(status["last_reload"]["ok"]))]
    )
    out.metric(
        "restarts_total", "counter", "Workers and checkers that ended by themselves.", [({}, status["restarts"])]
    )
    serving = [worker for worker in status["workers"] if worker["generation"] == status["generation"]]
    workers = [({"slot": worker["slot"]}, int(worker["state"] == "serving")) for worker in serving]
    out.metric("worker_up", "gauge", "Whether a worker slot is served by its own worker.", workers)
    out.metric("checker_up", "gauge", "Whether the checker runs.", [({}, int(status["checker"] is not None))])
    out.metric("draining_workers", "gauge", "Workers that end.", [({}, len(status["workers"]) - len(serving))])
    out.metric(
        "local_delivery_alarm", "gauge", "Whether no return path at all is whole.", [({}, len(status["alarms"]))]
    )
    for name, text in (
        ("accept_paused", "Times a worker stopped accepting for lack of resources."),
        ("defects", "Sessions ended by an internal error."),
        ("log_dropped", "Log lines dropped because their reader was slow."),
        ("datagrams_dropped", "UDP datagrams the kernel did not take."),
        ("datagrams_stray", "UDP datagrams to an upstream socket that belong to no session."),
    ):
        out.metric(f"{name}_total", "counter", text, [({}, status["totals"][name])])


def _services(out, services):
    def each(field):
        return [({"service": service["name"]}, service[field]) for service in services]

    def by(prefix, key, names):
        return [
            ({"service": service["name"], key: name}, service[f"{prefix}_{name}"])
            for service in services
            for name in names
        ]

    out.metric("sessions", "gauge", "Sessions that are open.", each("sessions"))
    out.metric("accepted_total", "counter", "Clients accepted.", each("connections"))
    out.metric("refused_total", "counter", "Clients turned away, by cause.", by("refused", "cause", REFUSED))
    out.metric("source_total", "counter", "Steps of the source ladder.", by("source", "step", LADDER))


def _backends(out, rows):
    states = [
        ({**labels, "state": state}, int(backend["state"] == state))
        for labels, backend in rows
        for state in _BACKEND_STATES
    ]
    out.metric("backend_state", "gauge", "The state of a backend: 1 for the one it is in.", states)
    for name, kind, text, field in (
        ("backend_weight", "gauge", "Its weight.", "weight"),
        ("backend_connections", "gauge", "Connections it has.", "active"),
        ("backend_connections_total", "counter", "Connections made to it.", "connections"),
        ("backend_sent_bytes_total", "counter", "Bytes sent to it (ended connections).", "bytes_to_backend"),
        ("backend_received_bytes_total", "counter", "Bytes received from it (ended connections).", "bytes_to_client"),
    ):
        out.metric(name, kind, text, [(labels, backend[field]) for labels, backend in rows])
    failures = [
        ({**labels, "cause": cause}, backend[f"failed_{cause}"]) for labels, backend in rows for cause in FAILURES
    ]
    out.metric("backend_failures_total", "counter", "Connects that failed, by cause.", failures)


def _targets(out, targets):
    answers = {"yes": 1, "not asked": -1}
    for question, key in (("server", "server"), ("return_path", "return_path")):
        samples = [(labels, answers.get(target[key], 0)) for labels, target in targets]
        out.metric(f"health_{question}", "gauge", "A health question: 1 yes, 0 no, -1 not asked.", samples)
    for question, field in (("server", "server_failures"), ("return_path", "path_failures")):
        samples = [(labels, target[field]) for labels, target in targets]
        out.metric(f"health_{question}_failures_total", "counter", "Answers that stayed away.", samples)
    out.metric(
        "health_checks_total", "counter", "Rounds of questions.", [(labels, one["checks"]) for labels, one in targets]
    )
    out.metric("connect_seconds", "histogram", "How long connects took.", list(_histogram(targets)))


def _histogram(targets):
    for labels, target in targets:
        latency, count = target["latency"], 0
        for bound, number in zip((*LATENCY_BOUNDS, None), latency["buckets"]):
            count += number
            yield "_bucket", {**labels, "le": "+Inf" if bound is None else f"{bound / 1e6:g}"}, count
        yield "_sum", labels, latency["sum"] / 1e6
        yield "_count", labels, latency["count"]
