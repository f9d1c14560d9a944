# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab for the forwarder: routing set by hand, the config of a forwarder, and its process on host a."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from ansible_collections.trueip.l4proxy.plugins.module_utils import _healthy
from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _archive

from tests.lab import netns, wiring
from tests.lab.netns import NamespaceLab
from tests.support import processes
from tests.support.waiting import PATIENCE, eventually

BACKENDS = ("b", "c", "d")
#: Runs the forwarder's archive, as on hosts; without it this process's Python runs the sources.
PYTHON = os.environ.get("L4PROXY_TEST_PYTHON")
PROXY_ID = 11
TABLE = 20111
LOCAL_TABLE = 20100


def as_user(uid: int) -> tuple[str, ...]:
    """A wrapper that runs a command as an ordinary user with the forwarder's capabilities, as the unit does."""
    capabilities = "+net_raw,+net_bind_service"
    user = ("setpriv", f"--reuid={uid}", "--regid=65534", "--clear-groups", "--no-new-privs")
    return (
        *user,
        f"--inh-caps={capabilities}",
        f"--ambient-caps={capabilities}",
        "--bounding-set",
        f"-all,{capabilities}",
    )


AS_DAEMON = as_user(65534)


def raise_lab(name: str) -> NamespaceLab:
    """A lab that is not yet up, with a prefix for this process."""
    return NamespaceLab(prefix=f"kf{name}{os.getpid() % 10000}", hosts=["client", "router", "a", *BACKENDS])


def wire(lab: NamespaceLab) -> None:
    """Set local delivery on a and the return path on every backend, with ip and nft."""
    a = lab["a"]
    for family, icmp in (("-4", "icmp"), ("-6", "ipv6-icmp")):
        a.run(["ip", family, "route", "add", "local", "default", "dev", "lo", "table", str(LOCAL_TABLE)])
        for name in BACKENDS:
            source = lab[name].ipv4 if family == "-4" else lab[name].ipv6
            for protocol in ("tcp", "udp", icmp):
                # With iif, or packets that a sends to one backend from another's address would never leave a.
                rule = ["from", source, "iif", a.dev, "ipproto", protocol, "lookup", str(LOCAL_TABLE), "pref", "1100"]
                a.run(["ip", family, "rule", "add", *rule])
    for name in BACKENDS:
        _return_path(lab, name)


def _return_path(lab: NamespaceLab, name: str) -> None:
    host, a = lab[name], lab["a"]
    ruleset = f"""
table inet lab {{
  chain in {{
    type filter hook input priority mangle
    ct mark and 0xff == 0 ct direction original ether saddr {a.mac} ct mark set {PROXY_ID}
  }}
  chain out {{
    type route hook output priority mangle
    ct mark and 0xff == {PROXY_ID} meta mark set {PROXY_ID}
  }}
}}
"""
    host.run(["nft", "-f", "-"], input=ruleset)
    for family, via in (("-4", a.ipv4), ("-6", a.ipv6)):
        host.run(["ip", family, "route", "add", "default", "via", via, "table", str(TABLE)])
        mark = ["fwmark", f"{PROXY_ID}/0xff", "lookup", str(TABLE), "pref", "1100"]
        host.run(["ip", family, "rule", "add", *mark])


def make_service(lab: NamespaceLab, name: str, port: int, backend_port: int, backends=BACKENDS, **options) -> dict:
    """A service on both wildcard addresses of a, without health checks unless ``options`` has them."""
    return {
        "name": name,
        "listen": [{"address": "0.0.0.0", "port": port}, {"address": "::", "port": port}],
        "backends": [
            {"name": host, "ipv4": lab[host].ipv4, "ipv6": lab[host].ipv6, "port": backend_port} for host in backends
        ],
        "health": {"enabled": False},
        **options,
    }


def web_and_raw(lab: NamespaceLab, web: int, raw: int) -> list[dict]:
    """On these ports: the HTTP servers of all backends, and the listener of the test on b."""
    return [make_service(lab, "web", web, 8080), make_service(lab, "raw", raw, 9000, backends=["b"])]


def two_ports(lab: NamespaceLab, port: int) -> dict:
    """A service "wide" with two backends on one host: "two:9000" and "two:9001"."""
    service = make_service(lab, "wide", port, 9000, backends=["c", "c"])
    for backend, number in zip(service["backends"], (9000, 9001)):
        backend.update(name=f"two:{number}", port=number)
    return service


def make_config(*services: dict, **options) -> dict:
    """A config with one worker, so that a test knows which worker serves, unless ``options`` says otherwise."""
    common = {"schema": 1, "proxy_id": PROXY_ID, "workers": 1}
    return {**common, "services": list(services), **options}


def build_archive(directory: Path) -> Path:
    """The archive of the engines, as the roles install it."""
    path = directory / "l4proxy.pyz"
    path.write_bytes(_archive.archive(_archive.sources(netns.REPOSITORY)))
    return path


class Forwarder:
    """The process ``l4proxy forward`` on a host."""

    def __init__(
        self,
        lab: NamespaceLab,
        document: dict,
        *,
        host: str = "a",
        wrapper: tuple = (),
        archive: Path | None = None,
        environment: dict | None = None,
        directory: Path | None = None,
        **spawn,
    ):
        self.lab = lab
        self.directory = directory or Path(tempfile.mkdtemp(prefix="forwarder-", dir=lab.tmp))
        lab.tmp.chmod(0o711)  # a forwarder that runs as an ordinary user has to get there
        self.directory.chmod(0o777)
        self.config = self.directory / "config.json"
        self.configure(document)
        self.environment = {"RUNTIME_DIRECTORY": str(self.directory)}
        command = ["forward", "--config", str(self.config)]
        # Another user may be able to read neither this interpreter nor the checkout.
        python = "/usr/bin/python3" if wrapper else PYTHON or sys.executable
        archive = archive or (build_archive(self.directory) if wrapper or PYTHON else None)
        self.archive = archive
        program = [python, str(archive)] if archive else [python, "-c", netns.CLI]
        environment = {**netns.cli_environment(), **self.environment, **(environment or {})}
        if archive:
            del environment["PYTHONPATH"]
        self.process = lab[host].spawn([*wrapper, *program, *command], env=environment, **spawn)

    def configure(self, document: dict | str) -> None:
        """Replace the config file; nothing is reloaded."""
        text = document if isinstance(document, str) else json.dumps(document)
        self.config.write_text(text, encoding="utf-8")

    def runtime(self) -> dict:
        path = self.directory / "forwarder.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def serve(self) -> Forwarder:
        """Wait until it serves."""
        eventually(lambda: self.runtime() or self.process.poll() is not None, "the forwarder serves", self.show)
        assert self.process.poll() is None, self.show()
        return self

    def reload(self) -> subprocess.CompletedProcess:
        """Run ``l4proxy reload --wait``; the caller checks the exit status."""
        argv = [sys.executable, "-c", netns.CLI, "reload", "--wait"]
        return wiring.run(argv, check=False, timeout=90, env={**netns.cli_environment(), **self.environment})

    def healthy(self, **request: str) -> tuple[bool, str]:
        """Ask like ``l4proxy healthy``; return its answer and sentence."""
        return _healthy.ask(str(self.directory / "admin.sock"), request)

    def change_archive(self) -> None:
        """Install another archive, of the same code: the next reload makes new processes."""
        new = self.archive.with_name("another.pyz")
        new.write_bytes(self.archive.read_bytes())
        with zipfile.ZipFile(new, "a") as archive:
            archive.comment = os.urandom(8).hex().encode("ascii")
        new.replace(self.archive)

    def workers(self) -> list[int]:
        """The pids of its workers, old ones included."""
        return self.children("l4-worker")

    def children(self, name: str) -> list[int]:
        """The pids of its children whose name begins with ``name``."""
        listing = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids = [int(pid) for pid in listing.read_text(encoding="ascii").split()]
        return [pid for pid in pids if _comm(pid).startswith(name)]

    def ask(self, op: str, **arguments) -> dict:
        """Send a request to the admin socket; return the response."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(self.directory / "admin.sock"))
            sock.sendall(json.dumps({"op": op, **arguments}).encode() + b"\n")
            return json.loads(sock.makefile().readline())

    def status(self) -> dict:
        """The status document."""
        return self.ask("status")["status"]

    def log(self, event: str | None = None) -> list[dict]:
        lines = self.process.log.read_text(encoding="utf-8").split("\n")[:-1]  # the last line may be incomplete
        records = [json.loads(line) for line in lines if line.startswith("{")]
        return [record for record in records if event in (None, record["event"])]

    def connections(self, count: int) -> list[dict]:
        """The log lines of connections, once there are ``count``."""
        eventually(lambda: len(self.log("connection")) >= count, f"{count} connections in the log", self.show)
        return self.log("connection")

    def settled(self) -> int:
        """Wait until no worker has a connection; return the number of connections in the log."""
        eventually(lambda: all(_idle(pid) for pid in self.workers()), "the workers are idle", self.show)
        return len(self.log("connection"))

    def show(self) -> str:
        return self.process.log.read_text(encoding="utf-8")[-4000:]

    def stop(self, number: int = signal.SIGTERM, patience: float = PATIENCE) -> int:
        """Send a signal and wait; return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(patience)

    def __enter__(self) -> Forwarder:
        return self.serve()

    def __exit__(self, *exc_info: object) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:  # a second signal stops at once; a slow process may see two as one
            assert time.monotonic() < deadline, f"it does not end\n{self.show()}"
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8")
    except OSError:  # it has ended meanwhile
        return ""


def _idle(pid: int) -> bool:
    """Whether a worker sleeps and has no TCP connection: its log lines are then written."""
    sockets = set(processes.open_files(pid))
    table = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{name}").read_text(encoding="ascii").splitlines()[1:]
    ]
    listening = "0A"  # TCP_LISTEN in include/net/tcp_states.h
    return processes.asleep(pid) and not any(row[3] != listening and f"socket:[{row[9]}]" in sockets for row in table)
