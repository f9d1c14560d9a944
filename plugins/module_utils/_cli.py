# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ``l4proxy`` command. Every subcommand imports its engine when it runs and not before.

No module imports this file: AnsiballZ would follow the imports and ship both engines with each task.
"""

from __future__ import annotations

import argparse
import json
import logging
import socket
import sys
from collections.abc import Sequence
from typing import Any

from ._version import VERSION

CONFIG = "/etc/l4proxy/forwarder.json"
DOCUMENTS = "/etc/l4proxy/routing.d"

EVERY_SERVICE = "all"

EXIT_FAULT = 1
EXIT_USAGE = 2


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


def _order(arguments: argparse.Namespace) -> int:
    from ._forwarder.admin import cli_views, client

    path, service = arguments.socket or client.default_socket(), arguments.service
    wait = arguments.timeout if getattr(arguments, "wait", False) else None
    everywhere = None if service == EVERY_SERVICE else service
    return cli_views.run(lambda: cli_views.order(path, arguments.command, arguments.backend, everywhere, wait))


def _keep(arguments: argparse.Namespace) -> int:
    from ._routing.keeper import loop

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    return loop.run(arguments.directory, once=arguments.once, dry_run=arguments.dry_run)


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


def _resolved(host: str, source: str) -> str:
    """Return the address of ``host`` in the family of ``source``."""
    from ._shared.families import socket_family_of

    return str(socket.getaddrinfo(host, None, socket_family_of(source), socket.SOCK_STREAM)[0][4][0])


def _probe(arguments: argparse.Namespace) -> int:
    from . import _probe as engine

    host, port = arguments.target
    try:
        address = _resolved(host, arguments.source)
    except OSError as error:
        sys.stderr.write(
            f"l4proxy probe: {host} has no address of the family of --source {arguments.source}: {error}\n"
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

    forward = commands.add_parser("forward", help="run the forwarder (what the systemd unit does)")
    forward.add_argument("--config", default=CONFIG, metavar="FILE", help="default: %(default)s")
    forward.set_defaults(run=_forward)

    check_command = commands.add_parser("check", help="say everything that is wrong with a forwarder config")
    check_command.add_argument("file", nargs="?", default=CONFIG, metavar="FILE", help="default: %(default)s")
    check_command.set_defaults(run=_check)

    reload_command = commands.add_parser("reload", help="make the running forwarder load config and archive anew")
    reload_command.add_argument(
        "--wait", action="store_true", help="return when the new generation serves, or say why not"
    )
    reload_command.set_defaults(run=_reload)

    _add_admin_commands(commands)

    keep = commands.add_parser("keep", help="hold this host to its state documents (what the systemd unit does)")
    keep.add_argument("--directory", default=DOCUMENTS, metavar="DIR", help="default: %(default)s")
    keep.add_argument("--once", action="store_true", help="apply them once, and wait for nothing")
    keep.add_argument("--dry-run", action="store_true", help="print the difference, change nothing; 2 if there is one")
    keep.set_defaults(run=_keep)

    probe = commands.add_parser("probe", help="one handshake with a spoofed source: does it work, and if not, why")
    probe.add_argument("target", type=_endpoint, metavar="HOST:PORT", help="the backend")
    probe.add_argument("--source", required=True, metavar="ADDRESS", help="the address to come from")
    probe.add_argument("--timeout", type=float, default=3.5, metavar="SECONDS", help="default: %(default)s")
    probe.add_argument("--json", action="store_true", help="print step, seconds and sentence as JSON")
    probe.set_defaults(run=_probe)

    doctor = commands.add_parser("doctor", help="say what is wrong with the path on this host, why, and what mends it")
    doctor.add_argument("--directory", default=DOCUMENTS, metavar="DIR", help="state documents; default: %(default)s")
    doctor.add_argument("--config", default=CONFIG, metavar="FILE", help="of the forwarder; default: %(default)s")
    doctor.add_argument(
        "--client", action="append", default=[], metavar="ADDRESS", help="a client to try for, one a family"
    )
    doctor.add_argument(
        "--port", action="append", default=[], metavar="PORT[/udp]", help="a port that this host serves, repeatable"
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_admin_commands(commands: Any) -> None:
    """What is said over the forwarder's admin socket."""
    status = commands.add_parser("status", help="show services, backends and workers of the running forwarder")
    status.add_argument("--json", action="store_true", help="print the whole status document")
    status.set_defaults(run=_status)

    top = commands.add_parser("top", help="the same, again and again")
    top.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="default: %(default)s")
    top.set_defaults(run=_top)

    orders = {
        "drain": "give a backend no new connections; those it has go on",
        "maintenance": "the same, shown as maintenance",
        "ready": "give a backend connections again",
    }
    parsers = {name: commands.add_parser(name, help=text) for name, text in orders.items()}
    for parser in parsers.values():
        parser.add_argument("service", metavar="SERVICE", help=f"its name, or {EVERY_SERVICE}")
        parser.add_argument("backend", metavar="BACKEND", help="its name")
        parser.set_defaults(run=_order)
    for name in ("drain", "maintenance"):
        parsers[name].add_argument("--wait", action="store_true", help="return when it has no connections left")
        parsers[name].add_argument("--timeout", type=float, default=300.0, metavar="SECONDS", help="of --wait")
    for parser in (status, top, *parsers.values()):
        parser.add_argument("--socket", metavar="FILE", help="admin socket; default: in the runtime directory")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    :returns: the exit status: 0 done, 1 a fault was found, 2 wrong usage or drift (``keep --dry-run``).
    """
    arguments = _parser().parse_args(argv)
    return int(arguments.run(arguments))
