# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The topology as network namespaces: up in a fraction of a second, and always removed.

    with NamespaceLab(prefix="k", hosts=["client", "router", "a", "b"]) as lab:
        lab["a"].run(["ip", "rule"])

Two labs with different prefixes do not see each other. A lab that died without cleaning up is removed by the next one
with its prefix.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tests.lab import topology as topology_data
from tests.lab import wiring
from tests.lab.hosts import LabHost
from tests.lab.servers import NginxServer

REPOSITORY = Path(__file__).resolve().parents[2]
CLI = "from l4proxy._cli import main; raise SystemExit(main())"


class LabError(RuntimeError):
    """The lab cannot do something; the message says what to do."""


def engine_path() -> Path:
    """A directory for PYTHONPATH in which the engines are the package ``l4proxy``, as they are in the archive."""
    path = REPOSITORY / ".build" / "run"
    path.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (path / "l4proxy").symlink_to("../../plugins/module_utils")
    return path


class NamespaceLab:
    """A context manager: the chosen hosts as namespaces ``<prefix>-<host>``, and ``<prefix>-switch``.

    ``networks`` puts hosts into other networks than the topology file: ``{"b": ["inside", "side"]}``.
    """

    def __init__(self, prefix: str, hosts: Iterable[str], networks: Mapping[str, list[str]] | None = None):
        self.prefix = prefix
        self.topology = topology_data.load().select(hosts, networks)
        self.switch = f"{prefix}-switch"
        self.hosts: dict[str, LabHost] = {}
        self.tmp = Path()
        self._processes: list[subprocess.Popen] = []
        self._lock: socket.socket | None = None

    def __getitem__(self, name: str) -> LabHost:
        return self.hosts[name]

    def __enter__(self) -> NamespaceLab:
        self._take_lock()
        try:
            _remove(self.prefix)
            self.tmp = Path(tempfile.mkdtemp(prefix=f"l4proxy-lab-{self.prefix}-"))
            self._raise()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def netns_of(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def close(self) -> None:
        """Stop all processes and remove every namespace. May be called again."""
        for process in reversed(self._processes):
            stop(process)
        self._processes.clear()
        _remove(self.prefix)
        if self.tmp != Path():
            shutil.rmtree(self.tmp, ignore_errors=True)
        if self._lock:
            self._lock.close()
            self._lock = None

    def track(self, name: str, argv: list[str], options: dict) -> subprocess.Popen:
        """Start a process that ends with the lab."""
        log = self.tmp / f"{name}-{len(self._processes)}.log"
        with log.open("w", encoding="utf-8") as output:
            options.setdefault("stdout", output)
            options.setdefault("stderr", subprocess.STDOUT)
            options.setdefault("stdin", subprocess.DEVNULL)
            process = subprocess.Popen(argv, text=True, **options)
        process.log = log
        self._processes.append(process)
        return process

    def nginx(self, host: str, ports: Iterable[int] = (8080,), more: str = "") -> NginxServer:
        """Start nginx on a host; it answers every request with the host's name and a newline.

        ``more`` is added to its server block.
        """
        directory = Path(tempfile.mkdtemp(prefix=f"nginx-{host}-", dir=self.tmp))
        server = NginxServer(self[host], directory, list(ports), more)
        server.start()
        return server

    def l4proxy(
        self, host: str, args: list[str], *, check: bool = False, timeout: float = 60, python: str = sys.executable
    ):
        """Run the ``l4proxy`` command on a host; the caller checks the returncode, or passes check=True."""
        return self[host].run([python, "-c", CLI, *args], check=check, timeout=timeout, env=cli_environment())

    def _raise(self) -> None:
        hosts = list(self.topology.hosts.values())
        wiring.make_switch(self.topology, self.switch)
        wiring.make_hosts(hosts, self.netns_of)
        wiring.connect_hosts(self.topology, hosts, self.switch, self.netns_of)
        self.hosts = {
            name: LabHost(host, self.netns_of(name), self.track) for name, host in self.topology.hosts.items()
        }

    def _take_lock(self) -> None:
        # An abstract socket name disappears with its process, even a killed one, so no lock can be stale.
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0l4proxy-lab-{self.prefix}")
        except OSError as error:
            lock.close()
            raise LabError(
                f"a lab with prefix {self.prefix} is up in another process; choose another prefix"
            ) from error
        self._lock = lock


def cli_environment() -> dict[str, str]:
    """An environment in which a process finds the engines and this process's packages."""
    path = [str(engine_path()), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}


def stop(process: subprocess.Popen, patience: float = 5.0) -> None:
    """Terminate a process and wait for it; kill it after ``patience`` seconds."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()


def _remove(prefix: str) -> None:
    """Remove the namespaces of a prefix, and the processes in them."""
    names = wiring.namespaces(prefix)
    kill_processes_in(names)
    wiring.remove_namespaces(names)


def kill_processes_in(names: list[str]) -> None:
    """Kill the processes in namespaces of a lab, also those that left their parent."""
    deadline = time.monotonic() + 5
    while (pids := list(_pids(names))) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _pids(names: list[str]) -> Iterator[int]:
    """Processes in the namespaces, found by the namespace's inode as ``ip netns pids`` does, in one pass for all."""
    inodes = {(stat.st_dev, stat.st_ino) for stat in (os.stat(wiring.NETNS_DIR / name) for name in names)}
    if not inodes:
        return
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                stat = os.stat(entry / "ns" / "net")
                if (stat.st_dev, stat.st_ino) in inodes and not _is_zombie(entry):
                    yield int(entry.name)


def _is_zombie(entry: Path) -> bool:
    # The state follows the command, which is in parentheses and may contain parentheses (proc_pid_stat(5)).
    return (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] == "Z"
