# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the forwarder's kernel tests share: routing set by hand as in the article, a forwarder on a, and raw sockets."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _archive

from tests.lab import netns, wiring
from tests.lab.netns import NamespaceLab

BACKENDS = ("b", "c", "d")
FAMILIES = ("ipv4", "ipv6")
PATIENCE = 20.0  # seconds; how long a positive expectation may take on a busy machine
#: Runs the forwarders of the tests in the place of this process's Python, as their archive: what hosts have.
PYTHON = os.environ.get("L4PROXY_TEST_PYTHON")
PROXY_ID = 11
TABLE = 20111
LOCAL_TABLE = 20100


def raise_lab(name: str) -> NamespaceLab:
    """A lab, not yet entered, with a prefix of this process's own."""
    return NamespaceLab(prefix=f"kf{name}{os.getpid() % 10000}", hosts=["client", "router", "a", *BACKENDS])


def wire(lab: NamespaceLab) -> None:
    """Local delivery on a and the return path on every backend, by ip and nft."""
    a = lab["a"]
    for family, icmp in (("-4", "icmp"), ("-6", "ipv6-icmp")):
        a.run(["ip", family, "route", "add", "local", "default", "dev", "lo", "table", str(LOCAL_TABLE)])
        for name in BACKENDS:
            source = lab[name].ipv4 if family == "-4" else lab[name].ipv6
            for protocol in ("tcp", "udp", icmp):
                # By interface, or what a sends in the name of one backend to another never leaves it.
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


def service(lab: NamespaceLab, name: str, port: int, backend_port: int, backends=BACKENDS, **options) -> dict:
    """A service on both wildcard addresses of a; its backends are not asked for their health unless a test says so."""
    return {
        "name": name,
        "listen": [{"address": "0.0.0.0", "port": port}, {"address": "::", "port": port}],
        "backends": [
            {"name": host, "ipv4": lab[host].ipv4, "ipv6": lab[host].ipv6, "port": backend_port} for host in backends
        ],
        "health": {"enabled": False},
        **options,
    }


def config(*services: dict, **options) -> dict:
    """A config with one worker, so that a test knows whom it meets, unless it says otherwise.

    Several reloads of a busy machine may take longer than what a connection has by default to end after the first.
    """
    common = {"schema": 1, "proxy_id": PROXY_ID, "workers": 1, "drain_timeout": 300}
    return {**common, "services": list(services), **options}


def build_archive(directory: Path) -> Path:
    """The archive of the engines, as the roles install it."""
    path = directory / "l4proxy.pyz"
    path.write_bytes(_archive.archive(_archive.sources(netns.REPOSITORY)))
    return path


class Forwarder:
    """``l4proxy forward`` on a host: started, reloaded, read and stopped by the tests."""

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
        wait(lambda: self.runtime() or self.process.poll() is not None, "the forwarder serves", self.show)
        assert self.process.poll() is None, self.show()
        return self

    def reload(self) -> subprocess.CompletedProcess:
        """Run ``l4proxy reload --wait``; the caller looks at the outcome."""
        argv = [sys.executable, "-c", netns.CLI, "reload", "--wait"]
        return wiring.run(argv, check=False, timeout=90, env={**netns.cli_environment(), **self.environment})

    def workers(self) -> list[int]:
        """The pids of its workers, old ones included."""
        return self.children("l4-worker")

    def children(self, name: str) -> list[int]:
        """The pids of its children whose name begins with ``name``."""
        listing = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids = [int(pid) for pid in listing.read_text(encoding="ascii").split()]
        return [pid for pid in pids if _comm(pid).startswith(name)]

    def ask(self, op: str, **arguments) -> dict:
        """One request to its admin socket."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(self.directory / "admin.sock"))
            sock.sendall(json.dumps({"op": op, **arguments}).encode() + b"\n")
            return json.loads(sock.makefile().readline())

    def status(self) -> dict:
        """Its status document."""
        return self.ask("status")["status"]

    def log(self, event: str | None = None) -> list[dict]:
        lines = self.process.log.read_text(encoding="utf-8").split("\n")[:-1]  # what follows is half a line, or nothing
        records = [json.loads(line) for line in lines if line.startswith("{")]
        return [record for record in records if event in (None, record["event"])]

    def connections(self, count: int) -> list[dict]:
        """The connection lines, once there are ``count``."""
        wait(lambda: len(self.log("connection")) >= count, f"{count} connections in the log", self.show)
        return self.log("connection")

    def settled(self) -> int:
        """Wait until no worker has a connection; returns how many connections the log has by then."""
        wait(lambda: all(_idle(pid) for pid in self.workers()), "the workers are idle", self.show)
        return len(self.log("connection"))

    def show(self) -> str:
        return self.process.log.read_text(encoding="utf-8")[-4000:]

    def stop(self, number: int = signal.SIGTERM, patience: float = PATIENCE) -> int:
        """Signal it and wait; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(patience)

    def __enter__(self) -> Forwarder:
        return self.serve()

    def __exit__(self, *exc_info: object) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:  # the second signal is: now; to a process that is slow, two may be one
            assert time.monotonic() < deadline, f"it does not end\n{self.show()}"
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8")
    except OSError:  # it has ended meanwhile
        return ""


def wait(condition, what: str, explain=lambda: "", patience: float = PATIENCE):
    """Poll until ``condition()`` is true; returns its value."""
    deadline = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what}\n{explain()}"
        time.sleep(0.01)


def connect(lab: NamespaceLab, address: str, port: int, host: str = "client", timeout: float = PATIENCE):
    """A connected TCP socket of a lab host, usable from anywhere."""
    with lab[host].inside():
        return socket.create_connection((address, port), timeout=timeout)


def listen(lab: NamespaceLab, host: str, port: int, family: str = "ipv4") -> socket.socket:
    """A TCP listener of a lab host on its address of a family."""
    kind = socket.AF_INET6 if family == "ipv6" else socket.AF_INET
    with lab[host].inside():
        listener = socket.create_server((getattr(lab[host], family), port), family=kind, backlog=512)
    listener.settimeout(PATIENCE)
    return listener


@contextlib.contextmanager
def answering(lab: NamespaceLab, hosts, port: int):
    """On each host, in both families: answer a connection with the address and port it came from, and close it."""
    listeners = []
    for host in hosts:
        for address in (lab[host].ipv4, lab[host].ipv6):
            with lab[host].inside():
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                listeners.append(socket.create_server((address, port), family=family, backlog=512))

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                sock, peer = listener.accept()
            except OSError:
                return  # shut down below
            with sock, contextlib.suppress(OSError):  # a client may be gone already
                sock.sendall(f"{peer[0]} {peer[1]}".encode("ascii"))

    threads = [threading.Thread(target=serve, args=(listener,), daemon=True) for listener in listeners]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for listener in listeners:
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            listener.close()
        for thread in threads:
            thread.join(PATIENCE)


@contextlib.contextmanager
def refusing(lab: NamespaceLab, host: str, port: int):
    """A host whose firewall refuses a port with RST, as if nobody listened."""
    rule = f"type filter hook input priority 0\ntcp dport {port} reject with tcp reset"
    ruleset = f"table inet refusing {{\nchain in {{\n{rule}\n}}\n}}\n"
    lab[host].run(["nft", "-f", "-"], input=ruleset)
    try:
        yield
    finally:
        lab[host].run(["nft", "delete", "table", "inet", "refusing"])


def accept(listener: socket.socket) -> socket.socket:
    sock, _address = listener.accept()
    sock.settimeout(PATIENCE)
    return sock


def pair(lab: NamespaceLab, listener: socket.socket, port: int) -> tuple[socket.socket, socket.socket]:
    """(client's socket, backend's socket) of one connection through a; one byte was exchanged to prove it.

    It is of the listener's family.
    """
    client = connect(lab, lab["a"].ipv6 if listener.family == socket.AF_INET6 else lab["a"].ipv4, port)
    client.sendall(b"?")
    server = accept(listener)
    assert server.recv(1) == b"?"
    return client, server


def get(lab: NamespaceLab, address: str, port: int, timeout: float = PATIENCE) -> bytes:
    """The body of one HTTP/1.0 request from the client; raises OSError."""
    with connect(lab, address, port, timeout=timeout) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return receive_all(sock).partition(b"\r\n\r\n")[2]


def receive_all(sock: socket.socket) -> bytes:
    """Everything until EOF."""
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _idle(pid: int) -> bool:
    """Whether a worker sleeps and has no TCP connection; what it had to log is then in the log."""
    sockets = set(open_files(pid))
    table = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{name}").read_text(encoding="ascii").splitlines()[1:]
    ]
    listening = "0A"  # TCP_LISTEN in include/net/tcp_states.h
    return asleep(pid) and not any(row[3] != listening and f"socket:[{row[9]}]" in sockets for row in table)


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process are: "socket:[inode]", "pipe:[inode]" or a path."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.append(os.readlink(entry))
    return found


def asleep(pid: int) -> bool:
    """Whether a process waits."""
    return _stat(pid)[0] == "S"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the command, the state first."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()


def resident(pid: int) -> int:
    """Resident memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * 4096


def cpu_ticks(pid: int) -> int:
    """User and system time of a process in clock ticks of 10 ms."""
    fields = _stat(pid)
    return int(fields[11]) + int(fields[12])


def in_threads(work, count: int, patience: float = 60) -> list:
    """Run ``work(index)`` in ``count`` threads; returns the results in order, raises the first error."""
    results: list = [None] * count
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = work(index)
        except BaseException as error:  # noqa: BLE001  # raised again below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + patience
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), f"work not done within {patience:g} s"
    return results
