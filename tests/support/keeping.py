# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The process of a keeper on a host of a lab."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents, store

from tests.lab.netns import cli_environment
from tests.support.waiting import PATIENCE, eventually

# As `l4proxy keep`, but with files of the lab instead of the machine's.
PROGRAM = """
import logging, os, sys
from l4proxy._routing.host import backend_states, bans, runner, sysctl
from l4proxy._routing.reconcile.host import Host
from l4proxy._routing.keeper import announcer, command, kernel_services
kernel_services.PUBLISH, kernel_services.SAY = 0.5, 0.05  # seconds; so tests need not wait so long
announcer.HOLD, announcer.GRACE = 1.0, 1.5
logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
directory, memory, lock, states, iptables, admin = sys.argv[1:]
banned = bans.Reader(os.path.join(os.path.dirname(states), "denied.json"))
files = {"backend_states": backend_states.Reader(states), "bans": banned}
def run(argv, stdin=None):  # Debian has two iptables; the alternatives system names one
    name = argv[0].replace("tables", f"tables-{iptables}") if argv[0].startswith("ip") else argv[0]
    return runner.run([name, *argv[1:]], stdin)
host = Host(runner=run, sysctls=sysctl.Sysctls(memory), lock=lock, admin_socket=admin, **files)
raise SystemExit(command.run(directory, host=host))
"""
# As the systemd unit sets it.
UNIT = {"MALLOC_TRIM_THRESHOLD_": "131072"}


class Running:
    """A keeper's process on a host, and its state file."""

    def __init__(self, lab, host, directory: Path, iptables: str):
        self._iptables = iptables
        self.host, self.directory = host, directory
        self.documents, self.runtime, self.memory = directory / "routing.d", directory / "run", directory / "lib"
        for path in (self.documents, self.runtime, self.memory):
            path.mkdir(exist_ok=True)
        self.states = directory / "forwarder" / "backends.json"  # its directory is made with the first states
        self.admin_socket = directory / "forwarder" / "admin.sock"
        self._lab, self.process = lab, None

    def store(self, data: dict) -> None:
        document = documents.load(data)
        (self.documents / f"{document.owner}.json").write_text(store.content_of(document), encoding="utf-8")

    def start(self) -> None:
        (self.runtime / "state.json").unlink(missing_ok=True)
        files = [self._lab.engine.directory / f"{self.host.name}{suffix}" for suffix in ("-sysctl.json", ".lock")]
        files += [self.states, self._iptables, self.admin_socket]
        argv = [sys.executable, "-c", PROGRAM, str(self.documents), *map(str, files)]
        directories = {"RUNTIME_DIRECTORY": str(self.runtime), "STATE_DIRECTORY": str(self.memory)}
        self.process = self.host.spawn(argv, env={**cli_environment(), **UNIT, **directories}, start_new_session=True)
        eventually(lambda: self.state)

    def stop(self) -> int:
        """Stop it as systemd does; return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def publish(self, services: dict) -> None:
        """Replace the states of backends, as a forwarder does."""
        self._replace(self.states, {"schema": 1, "services": services})

    def ban(self, family: str, *ranges: list, service: str = "") -> None:
        """Replace the list of banned clients, as a forwarder does."""
        found = {"source": "bans", "service": service, "family": family, "ranges": ranges}
        self._replace(self.states.with_name("denied.json"), {"schema": 1, "lists": [found] if ranges else []})

    @staticmethod
    def _replace(path: Path, content: dict) -> None:
        path.parent.mkdir(exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(content), encoding="utf-8")
        new.rename(path)

    @property
    def counters(self) -> dict:
        """What it publishes of kernel services."""
        path = self.runtime / "datapath.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @property
    def state(self) -> dict:
        path = self.runtime / "state.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @property
    def repairs(self) -> int:
        return self.state["repairs"]["total"]

    @property
    def log(self) -> str:
        return self.process.log.read_text(encoding="utf-8")

    def cpu(self) -> float:
        """Seconds of CPU so far, children included (proc_pid_stat(5), fields 14 to 17)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def rest(self) -> None:
        """Wait until it is idle: one second in which it uses almost no CPU."""

        def rested() -> bool:
            before = self.cpu()
            time.sleep(1.0)
            return self.cpu() - before <= 0.01

        eventually(rested)


def storm(host, count: int) -> None:
    """Add and remove ``count`` routes in a foreign table."""
    routes = [f"198.19.{number >> 8}.{number & 255}/32 via 198.18.0.1 table 777" for number in range(count)]
    lines = [f"route {verb} {route}" for verb in ("add", "del") for route in routes]
    host.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n")


@contextmanager
def keeping(lab, name: str, directory: Path, *data: dict, iptables: str = "nft"):
    """Run a keeper with these documents. What it applied stays after it stops. ``iptables`` is nft or legacy."""
    running = Running(lab, lab[name], directory, iptables)
    for item in data:
        running.store(item)
    running.start()
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()
