# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``python -m tests.lab``: start, inspect, use and remove a lab of containers."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from tests.lab import image
from tests.lab.containers import DEFAULT_HOSTS, DEFAULT_PREFIX, ContainerLab, raised
from tests.lab.hosts import ContainerHost
from tests.lab.netns import LabError
from tests.lab.topology import TopologyError, load


def parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--prefix", default=os.environ.get("L4PROXY_LAB_PREFIX", DEFAULT_PREFIX), help="the name of the lab"
    )
    top = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", parents=[common], help="start a lab; replaces a lab with the same prefix")
    up.add_argument("hosts", nargs="*", default=list(DEFAULT_HOSTS), help=f"default: {' '.join(DEFAULT_HOSTS)}")
    verbs.add_parser("down", parents=[common], help="remove the lab")
    verbs.add_parser("status", parents=[common], help="show the state, release and addresses of each host")
    verbs.add_parser("images", help="build missing images")
    verbs.add_parser("clean", help="remove all labs of this checkout, and unused images")
    for verb, text in (
        ("restart", "reboot a host: it gets a new network namespace and its cables after booting"),
        ("stop", "power a host off"),
        ("start", "power a host on"),
        ("rewire", "unplug a host's cables and plug them in again"),
        ("shell", "open a shell on a host"),
    ):
        verbs.add_parser(verb, parents=[common], help=text).add_argument("host")
    execute = verbs.add_parser("exec", parents=[common], help="run a command on a host: exec HOST -- COMMAND ...")
    execute.add_argument("host")
    execute.add_argument("command", nargs="+")
    return top


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if os.geteuid() != 0:
        print("lab: must be run as root, to create namespaces and containers", file=sys.stderr)
        return 1
    try:
        return run(args)
    except (LabError, TopologyError, image.ImageError, TimeoutError, subprocess.CalledProcessError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace) -> int:
    if args.verb == "images":
        image.ensure(sorted({host.release for host in load().hosts.values() if host.release}), say)
        return 0
    if args.verb == "clean":
        for prefix in raised():
            ContainerLab(prefix, []).down()
        image.remove_all()
        return 0
    if args.verb == "up":
        started = time.monotonic()
        ContainerLab(args.prefix, args.hosts, say).__enter__()  # a failed start removes it again
        say(f"{args.prefix} is up after {time.monotonic() - started:.1f} s: {' '.join(args.hosts)}")
        return 0
    if args.verb == "down":
        ContainerLab(args.prefix, []).down()
        return 0
    lab = ContainerLab.attach(args.prefix, say)
    if args.verb == "status":
        for name, state in lab.status().items():
            host = lab.topology.hosts[name]
            print(f"{name:<8}{state:<10}{host.release or 'namespace':<11}{host.ipv4:<14}{host.ipv6}")
        return 0
    if args.verb in ("shell", "exec"):
        return enter(lab, args.host, args.command if args.verb == "exec" else ["bash"])
    getattr(lab, args.verb)(args.host)
    return 0


def enter(lab: ContainerLab, name: str, command: list[str]) -> int:
    """Run a command on a host with this process's terminal; return its exit status."""
    host = lab[name]
    if isinstance(host, ContainerHost):
        command = ["env", f"TERM={os.environ.get('TERM', 'dumb')}", *command]
    return subprocess.run(host.argv(command), check=False).returncode


def say(line: str) -> None:
    print(f"lab: {line}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
