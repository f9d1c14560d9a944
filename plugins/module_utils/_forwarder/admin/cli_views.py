# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``l4proxy status``, ``top``, ``drain``, ``ready`` and ``maintenance``: what a person sees of the admin socket."""

from __future__ import annotations

import json
import select
import sys
import time

from . import client, metrics
from .client import AdminError

TOP_INTERVAL = 1.0  # seconds between two pictures
CLEAR = "\x1b[H\x1b[2J"
_UNITS = ("", "k", "M", "G", "T", "P")


def run(work):
    """Call ``work()`` and return its exit code; an AdminError is printed, and the code is 1."""
    try:
        return work()
    except AdminError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 0


def show_status(path, as_json):
    """Print the status once."""
    document = client.ask(path, "status")["status"]
    sys.stdout.write(json.dumps(document, indent=1) + "\n" if as_json else table(document))
    return 0


def top(path, interval, rounds=None):
    """Redraw the table until interrupted, with what changed each second; ``rounds`` limits the pictures."""
    interval = max(interval, 0.2)
    before, taken = None, 0.0
    while rounds is None or rounds > 0:
        document, now = client.ask(path, "status")["status"], time.monotonic()
        rates: dict = _rates(before, document, now - taken) if before else {}
        sys.stdout.write(CLEAR + table(document, rates))
        sys.stdout.flush()
        before, taken = document, now
        rounds = rounds - 1 if rounds is not None else None
        if rounds != 0 and select.select([sys.stdin], [], [], interval)[0] and not sys.stdin.readline():
            time.sleep(interval)  # no terminal: its end would be read again and again
    return 0


def order(path, op, backend, service, wait=None):
    """Drain a backend, put it into maintenance or make it ready; with ``wait`` (seconds) until it is empty."""
    answer = client.ask(path, op, backend=backend, service=service)
    state = {"drain": "draining", "maintenance": "in maintenance", "ready": "ready"}[op]
    where = ", ".join(answer["services"])
    if wait is not None:
        left = client.wait_until_empty(path, backend, service, wait)
        if left:
            sys.stderr.write(f"{backend} is {state} in {where}, but has {client.connections(left)} after {wait:g} s\n")
            return 1
        state += " and has no connections"
    sys.stdout.write(f"{backend} is {state} in {where}{'' if answer['changed'] else ' (as before)'}\n")
    return 0


# -- the table: pure -------------------------------------------------------------------------------------------------

_TITLES = ("BACKEND", "STATE", "SERVER", "RETURN PATH", "WEIGHT", "CONN", "TOTAL", "FAILED", "TO BACKEND", "TO CLIENT")


def table(document, rates=None):
    """Return the status document as text; ``rates`` are new connections a second by (service, backend)."""
    lines = [_headline(document)]
    lines += [f"ALARM {alarm}" for alarm in document["alarms"]]
    last = document["last_reload"]
    if last["error"]:
        lines.append(f"the last reload failed at {last['at']}: {last['error']}")
    for service in document["services"]:
        listen = ", ".join(service["listen"])
        turned_away = sum(value for key, value in service.items() if key.startswith("refused_"))
        lines.append("")
        lines.append(
            f"{service['name']}  {listen}  {service['protocol']}, {service['balance']}: {service['sessions']} sessions,"
            f" {service['connections']} accepted, {turned_away} refused"
        )
        if service.get("absent"):
            lines.append(f"  not an address of this host, served as soon as it is: {', '.join(service['absent'])}")
        lines += _aligned([_TITLES, *(_row(service, backend, rates) for backend in service["backends"])])
    return "\n".join(lines) + "\n"


def _headline(document):
    serving = [worker for worker in document["workers"] if worker["generation"] == document["generation"]]
    up = sum(worker["state"] == "serving" for worker in serving)
    ending = metrics.draining(document)
    old = f", {ending} draining" if ending else ""
    checker = "" if document["checker"] else ", NO CHECKER"
    if checker == "" and document["checker"].get("hung"):
        checker = ", CHECKER HANGS"
    return (
        f"l4proxy {document['version']} (pid {document['pid']}), generation {document['generation']}"
        f" since {document['loaded_at']}, {up} of {len(serving)} workers{old}{checker}"
    )


def _row(service, backend, rates):
    families = backend["families"].values()
    failed = sum(value for key, value in backend.items() if key.startswith("failed_"))
    total = str(backend["connections"])
    if rates:
        total += f" (+{rates.get((service['name'], backend['name']), 0):.0f}/s)"
    name = f"{backend['name']} (backup)" if backend["backup"] else backend["name"]
    return (
        name,
        backend["state"],
        _answers(families, "server"),
        _answers(families, "return_path"),
        str(backend["weight"]),
        str(backend["active"]),
        total,
        str(failed),
        amount(backend["bytes_to_backend"]),
        amount(backend["bytes_to_client"]),
    )


def _answers(families, key):
    """Return one word when all families say the same, else each one's."""
    words = [one[key] for one in families]
    return words[0] if len(set(words)) == 1 else " / ".join(words)


def _aligned(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]


def amount(number):
    """Return a number of bytes as a person reads it: 999, 1.5k, 20M (powers of 1000)."""
    value, unit = float(number), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g}{_UNITS[unit]}"


def _rates(before, after, seconds):
    def counts(document):
        return {
            (service["name"], backend["name"]): backend["connections"]
            for service in document["services"]
            for backend in service["backends"]
        }

    old = counts(before)
    return {key: (count - old.get(key, count)) / seconds for key, count in counts(after).items()}
