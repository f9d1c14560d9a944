# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``l4proxy deny``, ``allow`` and ``denied`` print."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from . import bans, cli_views, client
from .status import deny_file_line, duration

EXIT_USAGE = 2


def run(arguments: argparse.Namespace, path: str) -> int:
    """Run one of the commands; return the exit status: 1 if the forwarder refuses it, 2 for wrong usage."""
    command = {"deny": _deny, "allow": _allow, "denied": _denied}[arguments.command]
    return int(cli_views.run(lambda: command(arguments, path)))


def _deny(arguments: argparse.Namespace, path: str) -> int:
    try:
        seconds = None if arguments.duration is None else bans.parse_duration(arguments.duration)
    except ValueError as error:
        sys.stderr.write(f"l4proxy deny: {error}\n")
        return EXIT_USAGE
    request = {"network": arguments.network, "service": arguments.service, "reason": arguments.reason}
    answer = client.ask(path, "deny", seconds=seconds, **request)
    until = f"until {answer['expires']}" if answer["expires"] else "until it is allowed"
    sys.stdout.write(f"{answer['network']} is banned {until}{_at(arguments.service)}\n")
    return _warn(answer)


def _allow(arguments: argparse.Namespace, path: str) -> int:
    answer = client.ask(path, "allow", network=arguments.network, service=arguments.service)
    what = "is allowed again" if answer["changed"] else "was not banned"
    sys.stdout.write(f"{answer['network']} {what}{_at(arguments.service)}\n")
    for network, service in answer["remaining"]:
        sys.stderr.write(f"still banned: {network}{_at(service)}\n")
    return _warn(answer)


def _denied(arguments: argparse.Namespace, path: str) -> int:
    answer = client.ask(path, "denied")
    if arguments.json:
        sys.stdout.write(json.dumps({key: answer[key] for key in ("bans", "files")}, indent=1) + "\n")
        return 0
    rows = [
        (
            ban["network"],
            ban["service"] or "all",
            "-" if ban["seconds_left"] is None else duration(ban["seconds_left"]),
            ban["since"],
            ban["reason"],
        )
        for ban in answer["bans"]
    ]
    lines = [f"{len(rows)} ban{'' if len(rows) == 1 else 's'}"]
    lines += cli_views.aligned([("NETWORK", "SERVICE", "ENDS IN", "SINCE", "REASON"), *rows]) if rows else []
    lines += [deny_file_line(name, found) for name, found in answer["files"].items()]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _at(service: str | None) -> str:
    return f" at service {service}" if service else ""


def _warn(answer: dict[str, Any]) -> int:
    if "not_saved" in answer:
        sys.stderr.write(f"this is in effect, but not saved, and lost at a stop: {answer['not_saved']}\n")
        return 1
    return 0
