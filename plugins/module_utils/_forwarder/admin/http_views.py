# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pages of the metrics server: /metrics for Prometheus, / for people, /status.json for programs.

/healthz answers load balancers: 200 if this proxy should get clients, else 503, with a sentence.
"""

from __future__ import annotations

import html

from . import metrics
from .first_tier import FirstTier
from .kernel_services import age_text, in_kernel, known
from .status import (
    NOT_LOADED,
    agent_text,
    denied_lines,
    first_tier_lines,
    name_and_tier,
    not_saved,
    old_generation_line,
    pause_lines,
    round_trips,
    status,
)
from .status import pieces as status_pieces

_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="5"><title>l4proxy</title><style>
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em } table { border-collapse: collapse; margin: .5em 0 1.5em }
th, td { padding: .2em .8em; text-align: left; border-bottom: 1px solid #ccc } td.n { text-align: right }
.up { color: #060 } .down, .alarm { color: #a00 } .broken { color: #a50 }
</style></head><body>
"""
_CLASSES = {"up": "up", "down": "down", "return path broken": "broken", "paused": "broken"}
_COLUMNS = (
    "backend",
    "state",
    "server",
    "return path",
    "weight",
    "connections",
    "total",
    "to backend",
    "to client",
    "RTT",
    "retransmitted",
)


def answer(forwarder, path):
    """Return (status line, content type, iterator of the body's text) for a path; ``forwarder``: commands.Forwarder."""
    if path == "/healthz":
        verdict = FirstTier(forwarder).verdict()
        return "200 OK" if verdict.healthy else "503 Service Unavailable", "text/plain", iter([f"{verdict.sentence}\n"])
    snapshot = forwarder.snapshot() if path in _PAGES else None
    if snapshot is None:
        return "404 Not Found", "text/plain", iter(["the pages are /, /healthz, /metrics and /status.json\n"])
    kind, render_pieces = _PAGES[path]
    return "200 OK", kind, render_pieces(status(snapshot))


def render(document):
    """Return the page of a status document."""
    return "".join(pieces(document))


def pieces(document):
    """Yield the page of a status document as text, one service at a time."""
    yield f"{_HEAD}<h1>l4proxy {html.escape(document['version'])}</h1>"
    wrong = [line for line in denied_lines(document) if NOT_LOADED in line]
    for alarm in [*document["alarms"], *filter(None, [not_saved(document)]), *wrong]:
        yield f'<p class="alarm">{html.escape(alarm)}</p>'
    yield from (f"<p>{html.escape(line)}</p>" for line in first_tier_lines(document))
    last = document["last_reload"]
    yield f"<p>generation {document['generation']}, loaded {html.escape(document['loaded_at'])}"
    yield f"; the last reload failed: {html.escape(str(last['error']))}</p>" if last["error"] else "</p>"
    yield from map(_service, document["services"])
    workers = ", ".join(f"{worker['slot']}: pid {worker['pid']}, {worker['state']}" for worker in document["workers"])
    yield from (f"<p>{html.escape(old_generation_line(entry))}</p>" for entry in document["old_generations"])
    yield f"<p>workers: {html.escape(workers)}</p></body></html>\n"


_PAGES = {
    "/": ("text/html; charset=utf-8", pieces),
    "/metrics": (metrics.CONTENT_TYPE, metrics.pieces),
    "/status.json": ("application/json", status_pieces),
}


def _service(service):
    listen = ", ".join(service["listen"])
    head = f"<h2>{html.escape(service['name'])}</h2><p>{html.escape(listen)} ({html.escape(service['protocol'])}, "
    head += f"{html.escape(service['balance'])}), {known(service['sessions'])} sessions, "
    head += f"{known(service['connections'])} accepted</p>"
    head += f"<p>{html.escape(age_text(service))}</p>" if in_kernel(service) else ""
    titles = "".join(f"<th>{title}</th>" for title in _COLUMNS)
    rows = "".join(_backend(backend) for backend in service["backends"])
    head += "".join(f"<p>{html.escape(line)}</p>" for line in pause_lines(service))
    return f"{head}<table><tr>{titles}</tr>{rows}</table>"


def _backend(backend):
    families, agent = list(backend["families"].values()), backend["agent"]
    texts = [
        name_and_tier(backend),
        f"{backend['state']} (agent: {agent_text(agent)})" if agent else backend["state"],
        " / ".join(family["server"] for family in families),
        " / ".join(family["return_path"] for family in families),
    ]
    numbers = [backend[key] for key in ("weight", "active", "connections", "bytes_to_backend", "bytes_to_client")]
    numbers += [round_trips(backend), backend["retransmits"]]
    kind = _CLASSES.get(backend["state"], "")
    cells = [
        f"<td{f' class={kind}' if number == 1 else ''}>{html.escape(text)}</td>" for number, text in enumerate(texts)
    ]
    return "<tr>" + "".join([*cells, *(f'<td class="n">{known(number)}</td>' for number in numbers)]) + "</tr>"
