# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reloads and upgrades under load: ``python -m tests.bench.soak [SECONDS] [--control]``, as root.

Variables of the environment: FROM, a revision; WORKERS (2), the forwarder's worker processes.

The load (soak_ends.py): 200 new connections a second, 100 long streams and 500 UDP flows, half of each over IPv6, in
three phases: a reload every second for SECONDS, each with another config; three upgrades of the archive, each after one
that cannot start; and twice to an earlier version, FROM, and back. Half of it goes through services in the kernel: with
each reload another one is added, with each fifth the keeper is killed. An earlier version does not know these services:
its config is without them, and their table stays. No connection may be refused, reset or lost, no byte
may be wrong, every flow keeps its backend and source port, a reload with the same archive starts no worker, and the
load must have reached its rate. Prints a table; the exit status says whether all that was so.

``--control`` kills a worker each second instead, which the load must notice.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import reload_command
from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _archive

from tests.bench import soak_ends
from tests.lab import earlier, netns
from tests.support.forwarding import AS_DAEMON, BACKENDS, PROXY_ID, Forwarder, make_service, raise_lab
from tests.support.takeover import Fleet
from tests.support.waiting import PATIENCE

HTTP, OTHER, NOBODY = 8080, 9000, 8090  # of the backends: nginx, the echo of soak_ends.py, and no server
UPGRADES = 3
UPGRADE_EVERY = 5.0  # seconds
REACHED = 0.95  # of the intended rate
WORKERS = int(os.environ.get("WORKERS", "2"))
#: Version 0.1.0 ends what old workers hold after this time (default 30); they must know it before they drain.
EARLIER_DRAIN = 3600

COLUMNS = "{:<10}{:>8}{:>10}{:>9}{:>14}{:>8}{:>11}{:>9}{:>9}{:>7}{:>11}{:>10}"
TITLES = (
    "phase",
    "seconds",
    "reloads",
    "workers",
    "connections",
    "/s",
    "slowest s",
    "streams",
    "MB",
    "flows",
    "datagrams",
    "failures",
)


class Archives:
    """Archives of several versions behind a link, as the role installs them."""

    def __init__(self, directory: Path):
        directory.mkdir(mode=0o755)
        self._directory, self.link = directory, directory / "l4proxy.pyz"
        self._files = _archive.sources(netns.REPOSITORY)

    def install(self, version: str, **changed: bytes) -> Path:
        """Point the link to an archive of ``version``; ``changed`` replaces modules by name."""
        replaced = {"_version": f"VERSION = {version!r}\n".encode(), **changed}
        names = {f"{_archive.PACKAGE}/{name}.py": content for name, content in replaced.items()}
        return self._install(version, [(name, names.get(name, content)) for name, content in self._files])

    def install_revision(self, revision: str) -> Path:
        """Point the link to the archive of a git revision, as that collection builds it."""
        root = earlier.unpack(self._directory / revision, revision)
        return self._install(_archive.collection_version(root), _archive.sources(root))

    def _install(self, version: str, files: list[tuple[str, bytes]]) -> Path:
        content = _archive.archive(files)
        path = self._directory / _archive.archive_name(version, content)
        path.write_bytes(content)
        new = self._directory / "new"
        new.symlink_to(path.name)
        new.replace(self.link)
        return path


class Soak:
    """A lab under load, and its results."""

    def __init__(self, lab, archives: Archives):
        self.lab, self.archives = lab, archives
        self.fleet = Fleet(lab, lab.tmp, self.written(0), ["a"], BACKENDS)
        self.fleet.start()
        self.rows: list[tuple] = []
        self.failures: list[str] = []
        self.connections = 0
        archives.install("1.0.0")
        self.forwarder = Forwarder(lab, self.config(0), wrapper=AS_DAEMON, archive=archives.link).serve()
        for host in BACKENDS:
            lab.nginx(host, ports=[HTTP, HTTP + soak_ends.KERNEL])
            self._spawn(host, "server", host, str(OTHER), lab[host].ipv4, lab[host].ipv6)
        self.load = self._spawn("client", "client", lab["a"].ipv4, lab["a"].ipv6, stdin=subprocess.PIPE)

    def _spawn(self, host: str, *arguments: str, **options) -> subprocess.Popen:
        command = [sys.executable, soak_ends.__file__, *arguments]
        process = self.lab[host].spawn(command, stdout=subprocess.PIPE, stderr=None, **options)
        said = process.stdout.readline().strip()
        if said != "ready":
            raise RuntimeError(f"{' '.join(arguments)}: {said}\n{self.forwarder.show()}")
        return process

    def config(self, number: int, kernel: bool = True, **options: object) -> dict:
        """The services of the load and one more, on another port each time; with ``kernel``, all of them twice."""
        services = [
            make_service(self.lab, "web", soak_ends.WEB, HTTP),
            make_service(self.lab, "raw", soak_ends.RAW, OTHER, log="errors"),
            make_service(self.lab, "echo", soak_ends.ECHO, OTHER, protocol="udp", log="errors"),
            make_service(self.lab, "other", 6000 + 2 * (number % 50), NOBODY),
        ]
        if kernel:
            services += [self._of_kernel(service) for service in services]
        return {"schema": 1, "proxy_id": PROXY_ID, "workers": WORKERS, "services": services, **options}

    def _of_kernel(self, service: dict) -> dict:
        """The same service in the kernel, on the next ports."""
        port = service["listen"][0]["port"] + soak_ends.KERNEL
        listen = [{"address": address, "port": port} for address in (self.lab["a"].ipv4, self.lab["a"].ipv6)]
        backends = [{**one, "port": one["port"] + soak_ends.KERNEL} for one in service["backends"]]
        name = f"{service['name']}-kernel"
        return {**service, "name": name, "datapath": "kernel", "listen": listen, "backends": backends}

    def written(self, number: int) -> list[dict]:
        """All services as users write them."""
        common = {"health": {"enabled": False}}
        written = []
        for service in self.config(number)["services"]:
            more = {key: service[key] for key in ("name", "protocol", "datapath") if key in service}
            listen = [f"[{one['address']}]:{one['port']}" for one in service["listen"]]
            listen = [where.replace("[", "").replace("]", "") if "." in where else where for where in listen]
            backends = [f"{one['name']}:{one['port']}" for one in service["backends"]]
            written.append({**common, **more, "listen": listen, "backends": backends})
        return written

    def change_kernel(self, number: int) -> str:
        """Apply the documents with another service; every fifth time, kill the keeper before and start one after."""
        self.fleet.services = self.written(number)
        keeper = self.fleet.keepers["a"]
        if number % 5 == 0:
            keeper.process.kill()
            keeper.process.wait()
        self.fleet.apply_proxies(drain=math.inf, now=time.time())
        if number % 5 == 0:
            keeper.start()
        return "" if keeper.process.poll() is None else f"the keeper has ended: {keeper.log[-300:]}"

    def reload(self) -> str:
        """Reload as ``l4proxy reload --wait`` does; return what went wrong, or nothing."""
        ok, sentence = reload_command.reload(
            str(self.forwarder.directory / "forwarder.json"), True, reload_command.TIMEOUT
        )
        return "" if ok else sentence

    def ask(self) -> dict:
        """The load's results since the last call."""
        self.load.stdin.write("report\n")
        self.load.stdin.flush()
        return json.loads(self.load.stdout.readline())

    def phase(self, name: str, work: Callable[[], int]) -> None:
        """Run ``work`` under load and add a row to the table; ``work`` returns its number of reloads."""
        self.connections += self.ask()["connections"]
        reloads = work()
        time.sleep(1)
        told = self.ask()
        self.connections += told["connections"]
        rate = told["connections"] / told["seconds"]
        if rate < REACHED * soak_ends.RATE:
            self.failures.append(f"{name}: {rate:.0f} connections a second, not {soak_ends.RATE}: nothing is proven")
        self.failures += [f"{name}: {count} x {what}" for what, count in told["failures"].items()]
        cells = (f"{told['slowest']:.2f}", told["streams"], f"{told['bytes'] / 1e6:.0f}", told["flows"])
        count = sum(told["failures"].values())
        self.rows.append(
            (
                name,
                f"{told['seconds']:.1f}",
                reloads,
                len(self.forwarder.workers()),
                told["connections"],
                f"{rate:.1f}",
                *cells,
                told["datagrams"],
                count,
            )
        )

    def reloads(self, seconds: float) -> int:
        """Reload every second, each time with another config."""
        number, begun = 0, time.monotonic()
        while time.monotonic() < begun + seconds:
            number += 1
            self.forwarder.configure(self.config(number))
            if wrong := self.reload() or self.change_kernel(number):
                self.failures.append(f"reload {number}: {wrong}")
            time.sleep(max(0.0, begun + number - time.monotonic()))  # catches up after a slow one
            workers = len(self.forwarder.workers())
            if workers != WORKERS:
                self.failures.append(f"reload {number}: {workers} workers, not {WORKERS}")
        if number < REACHED * seconds:
            self.failures.append(f"{number} reloads in {seconds:g} s, not one a second: the machine is too busy")
        return number

    def upgrades(self) -> int:
        """Install another archive and reload, several times; each time after an archive that cannot start."""
        for number in range(1, UPGRADES + 1):
            before = self.forwarder.runtime()
            self.archives.install(f"1.{number}.0-broken", _cli=b"import l4proxy.missing\n")
            if "l4proxy.missing" not in self.reload():
                self.failures.append(f"upgrade {number}: a broken archive was not refused for what it is")
            self._serves(before["version"], before["archive"]["path"])
            path = self.archives.install(f"1.{number}.0")
            if wrong := self.reload():
                self.failures.append(f"upgrade {number}: {wrong}")
            self._serves(f"1.{number}.0", str(path))
            time.sleep(UPGRADE_EVERY)
        return 2 * UPGRADES

    def there_and_back(self, revision: str) -> int:
        """Downgrade to ``revision`` and upgrade again, twice. Before, set what keeps connections through that."""
        self.forwarder.configure(self.config(0, drain_timeout=EARLIER_DRAIN))
        if wrong := self.reload():
            self.failures.append(f"before a downgrade: {wrong}")
        installs = [lambda: self.archives.install_revision(revision), lambda: self.archives.install("2.0.0")]
        for step, install in enumerate(2 * installs):
            path = install()
            self.forwarder.configure(self.config(step, bool(step % 2), drain_timeout=EARLIER_DRAIN))
            if wrong := self.reload():
                self.failures.append(f"to {path.name}: {wrong}")
            self._serves(path.name.split("-")[1], str(path))
            time.sleep(UPGRADE_EVERY)
        return 2 * len(installs) + 1

    def _serves(self, version: str, path: str) -> None:
        runtime = self.forwarder.runtime()
        if (runtime["version"], runtime["archive"]["path"]) != (version, path):
            self.failures.append(f"{runtime['archive']['path']} serves, not {path}")

    def kills(self, seconds: float) -> int:
        """The control: kill a worker every second."""
        for _second in range(int(seconds)):
            if workers := self.forwarder.workers():
                os.kill(workers[0], signal.SIGKILL)
            time.sleep(1)
        return 0

    def counted(self) -> int:
        """Connections to "web" of the kernel, as the keeper has published them."""
        backends = self.fleet.keepers["a"].counters["services"]["web-kernel"]["backends"]
        return sum(one["connections"] for one in backends.values())

    def left(self) -> None:
        """Check the end state: nothing has died, and the kernel has counted half of all connections."""
        deadline = time.monotonic() + PATIENCE
        while self.counted() < self.connections // 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        if self.counted() < self.connections // 2:
            self.failures.append(f"the kernel has counted {self.counted()} connections, not half of {self.connections}")
        dead = [line for line in self.forwarder.log("worker ended") if line["code"]]
        self.failures += [f"a worker ended with code {line['code']}: {line['reason']}" for line in dead]
        self.failures += [f"a defect: {line['error']}" for line in self.forwarder.log("defect")]


def main() -> int:
    """Run, print the table and the failures; return 1 if there are any."""
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", nargs="?", type=float, default=60.0)
    parser.add_argument("--control", action="store_true")
    options = parser.parse_args()
    with raise_lab("so") as lab:
        soak = Soak(lab, Archives(lab.tmp / "archives"))
        with soak.forwarder:
            if options.control:
                soak.phase("kills", lambda: soak.kills(options.seconds))
            else:
                soak.phase("reloads", lambda: soak.reloads(options.seconds))
                soak.phase("upgrades", soak.upgrades)
                soak.phase(earlier.REVISION[:9], lambda: soak.there_and_back(earlier.REVISION))
            soak.load.stdin.close()
            soak.load.wait(PATIENCE)
            soak.left()
    for row in (TITLES, *soak.rows):
        print(COLUMNS.format(*row))
    for failure in soak.failures:
        print(f"  {failure}")
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())
