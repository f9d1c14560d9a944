# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host of a running lab."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.lab import wiring
from tests.lab.topology import Host, Interface


class LabHost:
    """A running host: its addresses, and commands in its network namespace."""

    def __init__(self, spec: Host, netns: str, track: Callable[..., subprocess.Popen] | None = None):
        self.spec, self.netns = spec, netns
        self.name, self.dev = spec.name, spec.dev
        self.ipv4, self.ipv6, self.mac = spec.ipv4, spec.ipv6, spec.mac
        self._track = track

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.netns}>"

    def on(self, network: str) -> Interface:
        """The host's interface in a network: .dev .ipv4 .ipv6 .mac .port"""
        return self.spec.on(network)

    def run(self, argv: list[str], *, check: bool = True, timeout: float = 20, **options):
        """Run a command; return a CompletedProcess with text. CommandFailed shows the output."""
        return wiring.run(self.argv(argv), check=check, timeout=timeout, **options)

    def spawn(self, argv: list[str], **options) -> subprocess.Popen:
        """Start a command that ends with the lab; its output goes to the file ``.log`` unless redirected."""
        return self._track(self.name, self.argv(argv), options)

    def inside(self) -> contextlib.AbstractContextManager[None]:
        """Move the calling thread into this host's network namespace and back."""
        return wiring.inside(self.netns)

    def sysctl(self, name: str, value: str) -> None:
        """Set a sysctl, written with dots (interface names must not contain one)."""
        with self.inside():
            Path("/proc/sys", *name.split(".")).write_text(value, encoding="ascii")

    def argv(self, command: list[str]) -> list[str]:
        """The command line that runs a command on this host."""
        # "ip netns exec" ends in exec: the pid is the command's own. It also mounts the namespace's /sys.
        return ["ip", "netns", "exec", self.netns, *map(str, command)]


class ContainerHost(LabHost):
    """A managed host: a systemd container. Commands run in all of its namespaces, not only its network namespace."""

    def __init__(self, spec: Host, netns: str, pid: int):
        super().__init__(spec, netns)
        self.pid = pid

    def argv(self, command: list[str]) -> list[str]:
        return enter_container(self.pid, list(map(str, command)))


#: Commands in a container get the environment of a root login, not the caller's.
ROOT_ENVIRONMENT = [
    "HOME=/root",
    "LANG=C.UTF-8",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM=dumb",
]

#: The fork into the pid namespace is the shell's, not nsenter's. A host that is powered off stops its processes before
#: it kills them (systemd-shutdown); nsenter would then stop itself too (it waits with WUNTRACED) and never reap its
#: child, and the pid namespace could not end. "exit" keeps the shell from replacing itself with the command.
FORK = ["/bin/sh", "-c", '"$@"; exit $?', "sh"]


def enter_container(pid: int, command: list[str]) -> list[str]:
    """The command line that runs a command in a container, given the pid of its init on this machine."""
    clean = ["/usr/bin/env", "--ignore-environment", "--chdir=/root", *ROOT_ENVIRONMENT]
    return ["nsenter", "--all", "--no-fork", f"--target={pid}", "--", *FORK, *clean, *command]
