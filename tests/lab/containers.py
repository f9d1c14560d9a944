# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The topology as systemd containers: managed hosts boot Debian; client and router are namespaces.

What is up is known by names (``<prefix>-<host>`` for container and namespace alike) and written to
.build/lab/<prefix>/lab.json, so any process, and one after a crash, can go on with it or take it down.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.lab import image, podman, wiring
from tests.lab import topology as topology_data
from tests.lab.hosts import ContainerHost, LabHost
from tests.lab.netns import LabError, kill_processes_in

STATE = image.BUILD
DEFAULT_PREFIX = "lab"
PREFIX = re.compile("[a-z0-9][a-z0-9_-]{0,19}")
DEFAULT_HOSTS = ("client", "router", "a", "b", "c", "d")


class ContainerLab:
    """A lab of containers; as a context manager, it is removed at the end."""

    def __init__(
        self,
        prefix: str = DEFAULT_PREFIX,
        hosts: Iterable[str] = DEFAULT_HOSTS,
        report: Callable[[str], None] = lambda line: None,
    ):
        if not PREFIX.fullmatch(prefix):
            raise LabError(f"prefix {prefix!r}: expected letters, digits, _ and -, at most 20 characters")
        self.prefix, self.switch, self._report = prefix, f"{prefix}-switch", report
        self.topology = topology_data.load().select(hosts)
        self._pids: dict[str, int] = {}

    @classmethod
    def attach(cls, prefix: str = DEFAULT_PREFIX, report: Callable[[str], None] = lambda line: None) -> ContainerLab:
        """The running lab with this prefix, whichever process started it."""
        try:
            state = json.loads(_state_file(prefix).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise LabError(f"no lab {prefix} is up; raise it: python -m tests.lab up --prefix {prefix}") from None
        lab = cls(prefix, state["hosts"], report)
        lab._pids = {name: host["pid"] for name, host in state["hosts"].items() if host["pid"]}
        return lab

    def __enter__(self) -> ContainerLab:
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.down()

    def __getitem__(self, name: str) -> LabHost:
        host = self._host(name)
        if not host.release:
            # Processes on such a host end with the lab.
            return LabHost(
                host, self.name_of(name), lambda _name, argv, more: subprocess.Popen(argv, text=True, **more)
            )
        return ContainerHost(host, self.name_of(name), self._running(name))

    def name_of(self, host: str) -> str:
        """The name of the host's container and of its network namespace."""
        return f"{self.prefix}-{host}"

    @property
    def managed(self) -> list[str]:
        return [name for name, host in self.topology.hosts.items() if host.release]

    # --- the whole lab ---

    def up(self) -> None:
        """Build missing images, boot the containers, then connect them. Replaces a running lab with the same prefix."""
        releases = sorted({self.topology.hosts[name].release for name in self.managed})
        images = image.ensure(releases, self._report)
        self.down()
        self._report(f"booting {' '.join(self.managed)}")
        plain = [name for name in self.topology.hosts if name not in self.managed]
        self._save()
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            pids = pool.map(lambda name: self._boot(name, images[self.topology.hosts[name].release]), self.managed)
            wiring.make_switch(self.topology, self.switch)
            wiring.make_hosts([self.topology.hosts[name] for name in plain], self.name_of)
            self._connect(plain)
            self._pids = dict(zip(self.managed, pids))
        self._report("connecting the cables")
        for name in self.managed:
            wiring.run(["ip", "netns", "attach", self.name_of(name), str(self._pids[name])])
        self._connect(self.managed)
        self._save()

    def down(self) -> None:
        """Remove containers, namespaces and state, as far as they exist."""
        podman.remove(list(podman.containers(self.prefix)))
        names = wiring.namespaces(self.prefix)
        kill_processes_in(names)
        wiring.remove_namespaces(names)
        self._pids = {}
        state = _state_file(self.prefix)
        state.unlink(missing_ok=True)
        if state.parent.is_dir() and not any(state.parent.iterdir()):
            state.parent.rmdir()

    def status(self) -> dict[str, str]:
        """The state of each host: ``up``, ``off`` (powered off), ``unplugged`` or ``missing``."""
        pids = podman.containers(self.prefix)
        spaces = wiring.namespaces(self.prefix)
        return {name: self._status(name, pids, spaces) for name in self.topology.hosts}

    # --- one host ---

    def restart(self, name: str) -> None:
        """Reboot a host: it gets a *new* network namespace, which is connected after systemd has booted."""
        self._unplug_after(name, podman.restart)
        self._plug_in(name)

    def stop(self, name: str) -> None:
        """Shut a host down; it keeps its disk."""
        self._unplug_after(name, podman.stop)
        self._save()

    def start(self, name: str) -> None:
        """Start a stopped host and connect it."""
        self._unplug_after(name, podman.start)
        self._plug_in(name)

    def rewire(self, name: str) -> None:
        """Replace a host's cables: new links, with the addresses and routes of the topology only."""
        self._unplug(name)
        self._connect([name])

    def exec(self, name: str, argv: list[str], *, check: bool = True, timeout: float = 60, **options):
        """Run a command on a host."""
        return self[name].run(argv, check=check, timeout=timeout, **options)

    # --- steps ---

    def _boot(self, name: str, image_name: str) -> int:
        container = self.name_of(name)
        podman.create(container, self.prefix, name, image_name)
        pid = podman.init_pid(container)
        podman.wait_booted(pid, container)
        return pid

    def _unplug_after(self, name: str, operation: Callable[[str], None]) -> None:
        if not self._host(name).release:
            raise LabError(f"{name} is a plain namespace; only {', '.join(self.managed)} can be powered off and on")
        operation(self.name_of(name))
        self._unplug(name)
        wiring.remove_namespaces([self.name_of(name)])
        self._pids[name] = 0

    def _plug_in(self, name: str) -> None:
        container = self.name_of(name)
        self._pids[name] = pid = podman.init_pid(container)
        podman.wait_booted(pid, container)
        wiring.run(["ip", "netns", "attach", container, str(pid)])
        self._connect([name])
        self._save()

    def _connect(self, names: list[str]) -> None:
        wiring.connect_hosts(self.topology, [self.topology.hosts[name] for name in names], self.switch, self.name_of)

    def _unplug(self, name: str) -> None:
        # Ports of a removed namespace disappear a little later by themselves, so a missing port is no error.
        for leg in self._host(name).interfaces:
            wiring.run(["ip", "-netns", self.switch, "link", "delete", leg.port], check=False)

    def _host(self, name: str) -> topology_data.Host:
        if name not in self.topology.hosts:
            raise LabError(f"no host {name} in the lab {self.prefix} (it has: {', '.join(self.topology.hosts)})")
        return self.topology.hosts[name]

    def _running(self, name: str) -> int:
        pid = self._pids.get(name, 0)
        if not pid:
            raise LabError(f"{name} is powered off; python -m tests.lab start {name} --prefix {self.prefix}")
        return pid

    def _status(self, name: str, pids: dict[str, int], spaces: list[str]) -> str:
        full = self.name_of(name)
        if self.topology.hosts[name].release:
            if full not in pids:
                return "missing"
            if not pids[full]:
                return "off"
            return "up" if full in spaces else "unplugged"
        return "up" if full in spaces else "missing"

    def _describe(self, name: str) -> dict[str, object]:
        """Data for the connection plugin: ``enter`` is the command line into the host, null if it is off."""
        host, pid = self.topology.hosts[name], self._pids.get(name, 0)
        reachable = pid or not host.release
        return {"netns": self.name_of(name), "pid": pid, "enter": self[name].argv([]) if reachable else None}

    def _save(self) -> None:
        state = _state_file(self.prefix)
        state.parent.mkdir(parents=True, exist_ok=True)
        data = {"prefix": self.prefix, "hosts": {name: self._describe(name) for name in self.topology.hosts}}
        # Atomically: the connection plugin may be reading.
        new = state.with_suffix(".new")
        new.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        new.replace(state)


def _state_file(prefix: str) -> Path:
    return STATE / prefix / "lab.json"


def raised() -> list[str]:
    """The prefixes of this checkout's running labs."""
    return sorted(state.parent.name for state in STATE.glob("*/lab.json"))
