# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the subcommands of ``l4proxy`` that ask the forwarder print."""

from __future__ import annotations

import json
import select
import sys
import time

from ..._shared.endpoints import join_endpoint
from ..config.backend_names import disabled
from . import client
from .client import AdminError
from .kernel_services import age_text, in_kernel, known, pointers
from .status import (
    agent_text,
    denied_lines,
    draining_workers,
    duration,
    first_tier_lines,
    name_and_tier,
    not_saved,
    old_generation_line,
    pause_lines,
    round_trips,
)

MIN_INTERVAL = 0.2  # seconds between two updates of `top`
CLEAR = "\x1b[H\x1b[2J"  # cursor home, erase the screen
_UNITS = ("", "k", "M", "G", "T", "P")


def run(command):
    """Call ``command()`` and return its exit status; an AdminError is printed and the status is 1."""
    try:
        return command()
    except AdminError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 0


def show_status(path, as_json):
    """Print the status of the forwarder at admin socket ``path``; return the exit status."""
    document = client.ask(path, "status")["status"]
    sys.stdout.write(json.dumps(document, indent=1) + "\n" if as_json else table(document))
    return 0


def top(path, interval, rounds=None):
    """Print the status and new connections per second every ``interval`` seconds, ``rounds`` times (None: endlessly).

    Enter updates at once. Returns the exit status.
    """
    interval = max(interval, MIN_INTERVAL)
    previous, previous_time = None, 0.0
    while rounds is None or rounds > 0:
        document, now = client.ask(path, "status")["status"], time.monotonic()
        rates: dict = _rates(previous, document, now - previous_time) if previous else {}
        sys.stdout.write(CLEAR + table(document, rates))
        sys.stdout.flush()
        previous, previous_time = document, now
        rounds = rounds - 1 if rounds is not None else None
        if rounds != 0 and select.select([sys.stdin], [], [], interval)[0] and not sys.stdin.readline():
            time.sleep(interval)  # end of file: select() would return at once every time
    return 0


def kill(path, selectors):
    """End the sessions that have all ``selectors``; print how many. Return the exit status: 1 if a worker is silent."""
    answer = client.ask(path, "kill", **selectors)
    sys.stdout.write(f"ended {_sessions(answer['ended'])}\n")
    _point_to_kernel(answer, "-D")
    more = "; `l4proxy status` shows the old generations, and `l4proxy kill --generation N` ends all of one"
    return _report_silent(answer, more)


def show_sessions(path, arguments, as_json):
    """Print the sessions that the ``arguments`` of the request select, the oldest first; return the exit status."""
    answer = client.ask(path, "sessions", **arguments)
    rows = [
        (
            one["service"],
            join_endpoint(one["client"], one["client_port"]),
            one["backend"] or "-",
            duration(one["duration"]),
            amount(one["bytes_to_backend"]),
            amount(one["bytes_to_client"]),
        )
        for one in answer["sessions"]
    ]
    return _show_list(answer, ("SERVICE", "CLIENT", "BACKEND", "AGE", "TO BACKEND", "TO CLIENT"), rows, as_json)


def show_clients(path, arguments, as_json):
    """Print the clients that have the most sessions or bytes; return the exit status."""
    answer = client.ask(path, "clients", **arguments)
    rows = [
        (
            one["service"],
            one["client"],
            str(one["sessions"]),
            duration(one["duration"]),
            amount(one["bytes_to_backend"]),
            amount(one["bytes_to_client"]),
        )
        for one in answer["clients"]
    ]
    return _show_list(answer, ("SERVICE", "CLIENT", "SESSIONS", "OLDEST", "TO BACKEND", "TO CLIENT"), rows, as_json)


def _show_list(answer, titles, rows, as_json):
    if as_json:
        sys.stdout.write(json.dumps(answer, indent=1) + "\n")
    else:
        lines = [_sessions(answer["count"]), *(aligned([titles, *rows]) if rows else ())]
        sys.stdout.write("".join(f"{line}\n" for line in lines))
    _point_to_kernel(answer, "-L")
    return _report_silent(answer)


def _point_to_kernel(answer, command):
    """Say by which ``command`` of conntrack(8) the connections can be had that the forwarder does not have."""
    for line in pointers(answer.get("in_kernel", {}), command):  # not of version 0.1.0
        sys.stderr.write(f"{line}\n")


def _sessions(number):
    return f"{number} session{'' if number == 1 else 's'}"


def _report_silent(answer, more=""):
    """Report workers that did not answer; return the exit status."""
    silent = answer["silent_workers"]
    if silent:
        why = "too busy, or of a version that cannot select sessions"
        sys.stderr.write(f"{silent} worker{'' if silent == 1 else 's'} did not answer: {why}{more}\n")
    return 1 if silent else 0


def change_first_tier(path, op, reason=None):
    """Take this proxy out of the first tier (``op`` withdraw) or put it back (rejoin); print a sentence, return 0."""
    answer = client.ask(path, op, reason=reason)
    _report_not_saved(answer)
    sys.stdout.write(f"{answer['sentence']}\n")
    return 0


def _report_not_saved(answer):
    if "not_saved" in answer:
        sys.stderr.write(f"not saved, and lost at a stop or reboot: {answer['not_saved']}\n")


def set_backend_state(path, op, backend, service, timeout=None, force=False):
    """Drain a backend, put it into maintenance or make it ready, in one service or (None) in all that have it.

    With ``timeout`` (seconds) wait until it has no connections, and then with ``force`` end those that are left. Prints
    one line; returns the exit status: 1 if the backend still has connections when the timeout ends.
    """
    answer = client.ask(path, op, backend=backend, service=service)
    state = {"drain": "draining", "maintenance": "in maintenance", "ready": "ready"}[op]
    services = ", ".join(answer["services"])
    _report_not_saved(answer)
    if timeout is not None:
        remaining = client.wait_until_empty(path, backend, service, timeout)
        ended = ""
        if remaining and force:
            count, remaining = client.end_connections(path, backend, service)
            ended = f" ({count} ended)"
        if remaining:
            sys.stderr.write(
                f"{backend} is {state} in {services}, but still has {client.connections(remaining)}"
                f" after {timeout:g} s\n"
            )
            return 1
        state += f" and has no connections{ended}"
    sys.stdout.write(f"{backend} is {state} in {services}{'' if answer['changed'] else ' (unchanged)'}\n")
    if answer.get("agent"):
        sys.stdout.write(f"its agent still keeps it out in {', '.join(answer['agent'])}; `l4proxy status` shows why\n")
    if answer.get("disabled"):
        sys.stdout.write(f"{disabled(backend, answer['disabled'])}\n")
    return 0


# -- the table: pure -------------------------------------------------------------------------------------------------

_TITLES = (
    *("BACKEND", "STATE", "SERVER", "RETURN PATH", "WEIGHT", "CONN", "TOTAL", "FAILED", "RTT", "RETRANS"),
    *("TO BACKEND", "TO CLIENT"),
)


def table(document, rates=None):
    """Return the status document as text; ``rates`` are new connections per second by (service, backend)."""
    lines = [_headline(document)]
    lines += [f"ALARM {alarm}" for alarm in document["alarms"]]
    config = document.get("config") or {}
    if config.get("error"):
        lines.append(f"SERVING THE LAST GOOD CONFIG, {config['path']}: {config['error']}")
    for name, reason in document.get("failed", {}).items():
        if name.startswith(("admin:", "metrics:")):
            lines.append(f"NOT LISTENING on {name}: {reason}")
    last = document["last_reload"]
    if last["error"]:
        lines.append(f"the last reload failed at {last['at']}: {last['error']}")
    if sentence := not_saved(document):
        lines.append(sentence)
    lines += denied_lines(document)
    lines += first_tier_lines(document)
    lines += map(old_generation_line, document.get("old_generations", ()))  # not of version 0.1.0
    for service in document["services"]:
        listen = ", ".join(service["listen"])
        causes = [value for key, value in service.items() if key.startswith("refused_")]
        refused = None if None in causes else sum(causes)
        lines.append("")
        lines.append(
            f"{service['name']}  {listen}  {service['protocol']}, {service['balance']}: {known(service['sessions'])}"
            f" sessions, {known(service['connections'])} accepted, {known(refused)} refused"
        )
        if in_kernel(service):
            lines.append(f"  {age_text(service)}")
        if service.get("absent"):
            lines.append(f"  waiting for these addresses to appear on this host: {', '.join(service['absent'])}")
        lines += [f"  NOT LISTENING on {one}: {reason}" for one, reason in service.get("failed", {}).items()]
        lines += [f"  {line}" for line in pause_lines(service)]
        backends = service["backends"]
        rows = [_TITLES, *(_row(service, backend, rates) for backend in backends)]
        if any(backend.get("agent") for backend in backends):  # not of version 0.1.0
            agents = [agent_text(backend["agent"]) for backend in backends]
            rows = [(*row, text) for row, text in zip(rows, ["AGENT", *agents])]
        lines += aligned(rows)
    return "\n".join(lines) + "\n"


def _headline(document):
    live = [worker for worker in document["workers"] if worker["generation"] == document["generation"]]
    serving = sum(worker["state"] == "serving" for worker in live)
    draining = draining_workers(document)
    old = f", {draining} draining" if draining else ""
    checker = ""
    if not document["checker"]:
        checker = ", NO CHECKER"
    elif document["checker"].get("hung"):
        checker = ", CHECKER HANGS"
    return (
        f"l4proxy {document['version']} (pid {document['pid']}), generation {document['generation']}"
        f" since {document['loaded_at']}, {serving} of {len(live)} workers{old}{checker}"
    )


def _row(service, backend, rates):
    families = backend["families"].values()
    failed = sum(value for key, value in backend.items() if key.startswith("failed_"))
    total = known(backend["connections"])
    if rates and backend["connections"] is not None:
        total += f" (+{rates.get((service['name'], backend['name']), 0):.0f}/s)"
    return (
        name_and_tier(backend),
        backend["state"],
        _by_family(families, "server"),
        _by_family(families, "return_path"),
        str(backend["weight"]),
        known(backend["active"]),
        total,
        str(failed),
        round_trips(backend),
        str(backend.get("retransmits", "-")),
        amount(backend["bytes_to_backend"]),
        amount(backend["bytes_to_client"]),
    )


def _by_family(families, key):
    """Return the value that all families share, or else the values of both."""
    values = [family[key] for family in families]
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def aligned(rows):
    """Return a line for each row of texts; columns are aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]


def amount(number):
    """Return a number of bytes with a unit, in powers of 1000: 999, 1.5k, 20M; "-" if it is not known."""
    if number is None:
        return "-"
    value, unit = float(number), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g}{_UNITS[unit]}"


def _rates(before, after, seconds):
    """Return new connections per second by (service, backend) between two status documents."""

    def counts(document):
        return {
            (service["name"], backend["name"]): backend["connections"]
            for service in document["services"]
            for backend in service["backends"]
            if backend["connections"] is not None
        }

    old = counts(before)
    return {key: (count - old.get(key, count)) / seconds for key, count in counts(after).items()}
