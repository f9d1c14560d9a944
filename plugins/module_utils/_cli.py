# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ``l4proxy`` command. Each subcommand imports its engine only when it runs.

No Ansible module may import this file: AnsiballZ would follow the imports and ship both engines with each task.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from ._shared import paths
from ._version import VERSION

EVERY_SERVICE = "all"

EXIT_FAULT = 1
EXIT_USAGE = 2

_SELECTORS = ("generation", "service", "backend", "client")  # options that select sessions

DEFAULT = "default: %(default)s"  # argparse inserts the value


def _forward(arguments: argparse.Namespace) -> int:
    from ._forwarder.process import supervisor

    return supervisor.run(arguments.config)


def _check(arguments: argparse.Namespace) -> int:
    from ._forwarder.process import check_command

    return check_command.run(arguments.file)


def _reload(arguments: argparse.Namespace) -> int:
    from ._forwarder.process import reload_command

    return reload_command.run(wait=arguments.wait)


def _status(arguments: argparse.Namespace) -> int:
    from ._forwarder.admin import cli_views, client

    path = arguments.socket or client.default_socket()
    return cli_views.run(lambda: cli_views.show_status(path, arguments.json))


def _top(arguments: argparse.Namespace) -> int:
    from ._forwarder.admin import cli_views, client

    path = arguments.socket or client.default_socket()
    return cli_views.run(lambda: cli_views.top(path, arguments.interval))


def _healthy(arguments: argparse.Namespace) -> int:
    from . import _healthy as command

    values = {"service": arguments.service, "need_backend": arguments.need_backend}
    request = {key: json.dumps(value)[1:-1] for key, value in values.items() if value}
    healthy, sentence = command.ask(arguments.socket or command.default_socket(), request)
    sys.stdout.write(f"{sentence}\n")
    return 0 if healthy else EXIT_FAULT


def _first_tier(arguments: argparse.Namespace) -> int:
    from ._forwarder.admin import cli_views, client

    path = arguments.socket or client.default_socket()
    reason = getattr(arguments, "reason", None)
    return cli_views.run(lambda: cli_views.change_first_tier(path, arguments.command, reason))


def _set_backend_state(arguments: argparse.Namespace) -> int:
    from ._forwarder.admin import cli_views, client

    path = arguments.socket or client.default_socket()
    service = None if arguments.service == EVERY_SERVICE else arguments.service
    force = getattr(arguments, "kill", False)
    wait = arguments.timeout if force or getattr(arguments, "wait", False) else None
    return cli_views.run(
        lambda: cli_views.set_backend_state(path, arguments.command, arguments.backend, service, wait, force)
    )


def _sessions(arguments: argparse.Namespace) -> int:
    from ._forwarder.admin import cli_views, client

    path = arguments.socket or client.default_socket()
    request = {name: getattr(arguments, name) for name in (*_SELECTORS, "limit")}
    if arguments.command == "clients":
        return cli_views.run(lambda: cli_views.show_clients(path, {**request, "by": arguments.by}, arguments.json))
    return cli_views.run(lambda: cli_views.show_sessions(path, request, arguments.json))


def _kill(arguments: argparse.Namespace) -> int:
    from ._forwarder.admin import cli_views, client

    path = arguments.socket or client.default_socket()
    selectors = {name: getattr(arguments, name) for name in _SELECTORS}
    if all(value is None for value in selectors.values()):
        options = ", ".join(f"--{name}" for name in _SELECTORS)
        sys.stderr.write(f"l4proxy kill: select the sessions to end by at least one of {options}\n")
        return EXIT_USAGE
    return cli_views.run(lambda: cli_views.kill(path, selectors))


def _bans(arguments: argparse.Namespace) -> int:
    from ._forwarder.admin import ban_views, client

    path = arguments.socket or client.default_socket()
    return ban_views.run(arguments, path)


def _keep(arguments: argparse.Namespace) -> int:
    from ._routing.keeper.notify import notify
    from ._routing.keeper.starting import StartTimer

    timer = StartTimer(lambda text: notify(text, os.environ))
    if not (arguments.once or arguments.dry_run):
        timer.start()  # before the imports, which alone may take long on a busy host
    from ._routing.keeper import command

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    return command.run(arguments.directory, once=arguments.once, dry_run=arguments.dry_run, timer=timer)


def _endpoint(text: str) -> tuple[str, int]:
    """Return (host, port); raise ArgumentTypeError."""
    from ._shared.endpoints import port_number, split_endpoint

    try:
        host, port_text = split_endpoint(text)
    except ValueError:
        host = port_text = ""
    port = port_number(port_text)
    if not host or port is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT (IPv6: [ADDRESS]:PORT)")
    return host, port


def _resolve(host: str, source: str) -> str:
    """Return the address of ``host`` in the family of ``source``; raise OSError."""
    from ._shared.families import socket_family_of

    return str(socket.getaddrinfo(host, None, socket_family_of(source), socket.SOCK_STREAM)[0][4][0])


def _probe(arguments: argparse.Namespace) -> int:
    from . import _probe as engine

    host, port = arguments.target
    try:
        address = _resolve(host, arguments.source)
    except OSError as error:
        sys.stderr.write(
            f"l4proxy probe: {host} has no address in the family of --source {arguments.source}: {error}\n"
        )
        return EXIT_USAGE
    verdict = engine.probe(engine.Target(address, port, arguments.source), arguments.timeout)
    sys.stdout.write((json.dumps(verdict.to_dict()) if arguments.json else verdict.sentence) + "\n")
    return 0 if verdict.step == engine.ESTABLISHED else EXIT_FAULT


def _doctor(arguments: argparse.Namespace) -> int:
    from ._routing.doctor import report
    from ._routing.doctor.facts import gather

    sources = gather.Sources(directory=arguments.directory, config=arguments.config)
    return report.run(sources, arguments.client, arguments.port, arguments.json, sys.stdout, sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="l4proxy", description="IP-transparent layer-4 reverse proxy")
    parser.add_argument("--version", action="version", version=f"l4proxy {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_forwarder_commands(commands)
    _add_admin_commands(commands)
    _add_host_commands(commands)
    return parser


def _add(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    """Add a subcommand; ``l4proxy --help`` and its own ``--help`` show ``text``."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    return parser


def _add_forwarder_commands(commands: Any) -> None:
    """Add the commands that run, check and reload the forwarder."""
    forward = _add(commands, "forward", "run the forwarder in the foreground (the systemd unit does this)")
    forward.add_argument("--config", default=paths.CONFIG, metavar="FILE", help=f"config; {DEFAULT}")
    forward.set_defaults(run=_forward)

    check = _add(commands, "check", "check a forwarder config and print every error in it")
    check.add_argument("file", nargs="?", default=paths.CONFIG, metavar="FILE", help=f"config; {DEFAULT}")
    check.set_defaults(run=_check)

    reload = _add(commands, "reload", "load the installed config and archive without losing a connection")
    reload.add_argument("--wait", action="store_true", help="wait until the reload has succeeded or failed")
    reload.set_defaults(run=_reload)


def _add_admin_commands(commands: Any) -> None:
    """Add the commands that talk to the forwarder's admin socket."""
    status = _add(commands, "status", "show services, backends and workers of the running forwarder")
    status.add_argument("--json", action="store_true", help="print the status document as JSON")
    status.set_defaults(run=_status)

    top = _add(commands, "top", "show `status` continuously")
    top.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help=f"time between two updates; {DEFAULT}"
    )
    top.set_defaults(run=_top)

    states = {
        "drain": "give a backend no new connections; its open connections continue",
        "maintenance": "like drain, but `status` shows the backend in maintenance",
        "ready": "give a backend new connections again",
    }
    parsers = {name: _add(commands, name, text) for name, text in states.items()}
    for parser in parsers.values():
        parser.add_argument("service", metavar="SERVICE", help=f"name of the service, or {EVERY_SERVICE}")
        parser.add_argument("backend", metavar="BACKEND", help="name of the backend")
        parser.set_defaults(run=_set_backend_state)
    for name in ("drain", "maintenance"):
        parsers[name].add_argument("--wait", action="store_true", help="wait until the backend has no connections left")
        parsers[name].add_argument(
            "--timeout", type=float, default=300.0, metavar="SECONDS", help=f"limit of --wait; {DEFAULT}"
        )
        parsers[name].add_argument(
            "--kill", action="store_true", help="wait, and end the connections that are left at the timeout"
        )
    more = [*_add_first_tier_commands(commands), *_add_session_commands(commands), *_add_ban_commands(commands)]
    for parser in (status, top, *more, *parsers.values()):
        parser.add_argument(
            "--socket", metavar="FILE", help="admin socket; default: admin.sock in the runtime directory"
        )


def _add_first_tier_commands(commands: Any) -> list[argparse.ArgumentParser]:
    """Add the commands about the first tier; return their parsers."""
    healthy = _add(commands, "healthy", "say whether this proxy should get clients; exit status 0 or 1")
    healthy.add_argument("--service", metavar="SERVICE", help="clients of this service")
    healthy.add_argument(
        "--need-backend",
        choices=("none", "any", "each"),
        help="services that must have a backend that is up; default: as configured",
    )
    healthy.set_defaults(run=_healthy)
    withdraw = _add(commands, "withdraw", "take this proxy out of the first tier; it goes on serving")
    withdraw.add_argument("--reason", metavar="TEXT", help="shown by `healthy` and `status`")
    rejoin = _add(commands, "rejoin", "undo withdraw")
    for parser in (withdraw, rejoin):
        parser.set_defaults(run=_first_tier)
    return [healthy, withdraw, rejoin]


def _add_session_commands(commands: Any) -> list[argparse.ArgumentParser]:
    """Add the commands that list and end sessions; return their parsers."""
    sessions = _add(commands, "sessions", "list open sessions, the oldest first")
    clients = _add(commands, "clients", "list the clients with the most open sessions, or the most bytes in these")
    kill = _add(commands, "kill", "end sessions at once, TCP with a reset; they must match all options that are given")
    clients.add_argument("--by", choices=("sessions", "bytes"), default="sessions", help=f"order; {DEFAULT}")
    for parser in (sessions, clients):
        parser.add_argument("--limit", type=int, default=20, metavar="N", help=f"lines, at most 100; {DEFAULT}")
        parser.add_argument("--json", action="store_true", help="print the answer as JSON")
        parser.set_defaults(run=_sessions)
    kill.set_defaults(run=_kill)
    for parser in (sessions, clients, kill):
        parser.add_argument(
            "--generation", type=int, metavar="N", help="of this generation; `status` shows the old ones"
        )
        parser.add_argument("--service", metavar="SERVICE", help="of this service")
        parser.add_argument("--backend", metavar="BACKEND", help="of this backend")
        parser.add_argument(
            "--client", metavar="ADDRESS[/LENGTH]", help="of clients with this address, or in this network"
        )
    return [sessions, clients, kill]


def _add_ban_commands(commands: Any) -> list[argparse.ArgumentParser]:
    """Add the commands about bans; return their parsers."""
    deny = _add(commands, "deny", "refuse clients of a network from now on, and end their sessions")
    allow = _add(commands, "allow", "lift a ban")
    denied = _add(commands, "denied", "list the bans, and the files of denied networks")
    for parser in (deny, allow):
        parser.add_argument("network", metavar="ADDRESS[/LENGTH]", help="a client, or a network of clients")
        parser.add_argument("--service", metavar="SERVICE", help="only at this service; default: at all")
    deny.add_argument("--for", dest="duration", metavar="TIME", help="such as 90s, 15m, 1h or 7d; default: for good")
    deny.add_argument("--reason", default="", metavar="TEXT", help="for the log and `l4proxy denied`")
    denied.add_argument("--json", action="store_true", help="print the answer as JSON")
    for parser in (deny, allow, denied):
        parser.set_defaults(run=_bans)
    return [deny, allow, denied]


def _add_host_commands(commands: Any) -> None:
    """Add the commands about a host's routing: keep, probe, doctor."""
    keep = _add(
        commands, "keep", "apply this host's state documents and repair what differs (the systemd unit does this)"
    )
    keep.add_argument("--directory", default=paths.DOCUMENTS, metavar="DIR", help=f"state documents; {DEFAULT}")
    keep.add_argument("--once", action="store_true", help="apply the documents once and exit")
    keep.add_argument(
        "--dry-run",
        action="store_true",
        help="print the differences without changing anything; exit status 2 if there are any",
    )
    keep.set_defaults(run=_keep)

    probe = _add(commands, "probe", "try one TCP handshake from a spoofed source address; explain a failure")
    probe.add_argument("target", type=_endpoint, metavar="HOST:PORT", help="address of the backend")
    probe.add_argument(
        "--source", required=True, metavar="ADDRESS", help="spoofed source address, such as 198.51.100.11"
    )
    probe.add_argument(
        "--timeout", type=float, default=3.5, metavar="SECONDS", help=f"limit of the handshake; {DEFAULT}"
    )
    probe.add_argument("--json", action="store_true", help="print step, seconds and sentence as JSON")
    probe.set_defaults(run=_probe)

    doctor = _add(commands, "doctor", "diagnose this host's part of the path and suggest fixes")
    doctor.add_argument("--directory", default=paths.DOCUMENTS, metavar="DIR", help=f"state documents; {DEFAULT}")
    doctor.add_argument("--config", default=paths.CONFIG, metavar="FILE", help=f"forwarder config; {DEFAULT}")
    doctor.add_argument(
        "--client",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="check the path for this client address, one per family",
    )
    doctor.add_argument(
        "--port", action="append", default=[], metavar="PORT[/udp]", help="port that this host serves, repeatable"
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(run=_doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    :returns: the exit status: 0 success, 1 failure or a fault found, 2 wrong usage or differences (``keep --dry-run``).
    """
    arguments = _parser().parse_args(argv)
    return int(arguments.run(arguments))
