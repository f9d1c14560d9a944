# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fleet in the container lab, its inventory, which the steps edit, and what its clients see.

Variables of the environment: WORKERS (2): worker processes of each proxy. SETTLE (2): seconds for which a step is
watched after it has ended. VARS: more variables of the inventory, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.lab import ansible
from tests.lab.containers import ContainerLab
from tests.lab.netns import stop
from tests.support.waiting import eventually
from tests.walk import ends

HOSTS = ("client", "router", "a", "a2", "b", "c", "d")
WEB_SERVERS = ansible.REPOSITORY / "tests" / "lab" / "playbooks" / "web_servers.yml"
LOGS = ansible.REPOSITORY / ".build" / "walk"
RATE, SESSIONS = 50, 20
WEB, STREAM, FLOW, MORE = 80, 7000, 5300, 7001
HTTP, ECHO = 8080, 9000  # of the backends
WORKERS = int(os.environ.get("WORKERS", "2"))
SETTLE = float(os.environ.get("SETTLE", "2"))
VARIABLES = json.loads(os.environ.get("VARS", "{}"))


def service(name: str, port: int, to: int, **options: object) -> dict:
    """Return a service on both families, to b and c."""
    listen = [f"0.0.0.0:{port}", f"[::]:{port}"]
    return {"name": name, "listen": listen, "backends": [{"host": host, "port": to} for host in ("b", "c")], **options}


def first_inventory() -> dict:
    """Return proxy a, backends b and c, and the services of the load."""
    services = [
        service("web", WEB, HTTP),
        service("stream", STREAM, ECHO),
        service("flow", FLOW, ECHO, protocol="udp", idle_timeout=10),  # drained 10 s after a client's last datagram
    ]
    return {
        "all": {
            "vars": {"l4proxy_services": services, "forwarder_workers": WORKERS, **VARIABLES},
            "children": {"proxies": {"hosts": {"a": {}}}, "backends": {"hosts": {"b": {}, "c": {}}}},
        }
    }


def further_addresses(backend: str) -> dict[str, list[str]]:
    """Return a backend's return_path_addresses for strategy ``address``."""
    first = {"b": 121, "c": 131, "d": 141}[backend]
    return {proxy: [f"198.18.0.{number}", f"2001:db8::{number}"] for number, proxy in enumerate(("a", "a2"), first)}


@dataclass
class Row:
    """What clients saw of a step: events by kind, and how old generations of the proxies looked at its end."""

    name: str
    seconds: float
    events: list[dict] = field(repr=False)
    old: str
    ends: Callable[[dict], bool] = field(repr=False)
    failure: Exception | None = field(default=None, repr=False)

    def of(self, event: str, **keys: object) -> list[dict]:
        return [item for item in self.events if item["event"] == event and keys.items() <= item.items()]

    @property
    def failed(self) -> list[dict]:
        """The new connections that were not served."""
        return [item for item in self.of("connection") if item["error"]]

    def broken(self, kind: str) -> list[dict]:
        """The sessions that broke and should not have; each once."""
        wrong = [item for item in self.of("broken", kind=kind) if not self.ends(item)]
        return list({item["id"]: item for item in wrong}.values())

    @property
    def ended(self) -> list[dict]:
        """The sessions that the step ends, as documented."""
        return [item for item in self.of("broken") if self.ends(item) and item["backend"]]

    def how(self) -> str:
        """Return how sessions broke and connections failed, counted."""
        reasons = [f"{item['kind']} {item['how']}" for item in self.broken("stream") + self.broken("flow")]
        reasons += [f"connection {item['error']}" for item in self.failed]
        reasons += ["the step failed"] if self.failure else []
        reasons += [f"ended {item['kind']}: {item['how']}" for item in self.ended]
        return "; ".join(f"{reasons.count(reason)} {reason}" for reason in sorted(set(reasons)))

    def cells(self) -> tuple:
        slowest = max((item["seconds"] for item in self.of("connection") if not item["error"]), default=0.0)
        counts = (len(self.of("connection")), len(self.failed), f"{slowest:.2f}")
        broken = (len(self.broken("stream")), len(self.broken("flow")), len(self.ended))
        return (self.name, f"{self.seconds:.0f}", *counts, *broken, self.old, self.how())


class Fleet:
    """The running lab. The steps change ``inventory``."""

    logs = LOGS

    def __init__(self, lab: ContainerLab, directory: Path):
        self.lab, self.directory = lab, directory
        self.inventory = first_inventory()
        self.log = directory / "load.log"
        self.newer = ""  # the archive of the upgrade
        self._plays = self._read = 0
        self._events: list[dict] = []
        self._load: Any = None
        self.logs.mkdir(parents=True, exist_ok=True)

    # --- the inventory ---

    @property
    def variables(self) -> dict:
        return self.inventory["all"]["vars"]

    @property
    def services(self) -> dict[str, dict]:
        return {item["name"]: item for item in self.variables["l4proxy_services"]}

    def hosts(self, group: str) -> dict[str, dict]:
        return self.inventory["all"]["children"][group]["hosts"]

    # --- what operators do ---

    def play(self, playbook: str, *arguments: str, works: bool = True, collections: Path | None = None) -> ansible.Run:
        """Run a playbook of the collection on the inventory as it is now; its output goes to ``logs``."""
        self._plays += 1
        path = self.directory / "inventory.yml"
        path.write_text(yaml.safe_dump(self.inventory), encoding="utf-8")
        name = playbook if "/" in playbook else f"trueip.l4proxy.{playbook}"
        run = ansible.play(self.lab.prefix, name, [path], *arguments, collections=collections)
        log = self.logs / f"{self._plays:02}-{Path(playbook).stem}.log"
        log.write_text(run.output, encoding="utf-8")
        assert (run.status == 0) == works, f"{log}\n{run.output[-6000:]}"
        return run

    def sh(self, host: str, script: str, timeout: float = 90) -> str:
        return self.lab[host].run(["/bin/sh", "-ec", script], timeout=timeout).stdout

    def proxies(self, script: str) -> None:
        """Run a script on every proxy."""
        for name in self.hosts("proxies"):
            self.sh(name, script)

    # --- the load ---

    def serve(self, *names: str, port: int = ECHO) -> None:
        """Start servers of sessions on backends."""
        for name in names:
            host = self.lab[name]
            addresses = [host.ipv4, host.ipv6, *(one for pair in further_addresses(name).values() for one in pair)]
            host.run(["tee", "/root/ends.py"], input=Path(ends.__file__).read_text(encoding="utf-8"))
            self.sh(
                name,
                f"systemd-run --unit=ends-{port} python3 /root/ends.py server {name} {port} {' '.join(addresses)}",
            )

    def start_load(self, rate: float = RATE) -> None:
        """Start the program of the load, which does nothing yet."""
        argv = [sys.executable, ends.__file__, "client", str(rate)]
        with self.log.open("w", encoding="utf-8") as output:
            self._load = subprocess.Popen(
                self.lab["client"].argv(argv), stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, text=True
            )

    def begin(self) -> None:
        """Start the load through a."""
        self.start_load()
        self.web("a")
        self.open("stream", SESSIONS, "a", reopen=True)
        self.open("flow", SESSIONS, "a", reopen=True)

    def end(self) -> None:
        if self._load:
            stop(self._load)

    def _tell(self, **command: object) -> None:
        self._load.stdin.write(json.dumps(command) + "\n")
        self._load.stdin.flush()

    def targets(self, proxies: tuple[str, ...], port: int) -> list[tuple[str, int]]:
        return [(address, port) for name in proxies for address in (self.lab[name].ipv4, self.lab[name].ipv6)]

    def web(self, *proxies: str) -> None:
        """Send new connections to these proxies only."""
        self._tell(web=self.targets(proxies, WEB))

    def open(
        self, kind: str, count: int, *proxies: str, port: int = 0, reopen: bool = False, life: float | None = None
    ) -> None:
        """Open sessions, and wait until all have begun."""
        before = self._begun()
        to = self.targets(proxies, port or {"stream": STREAM, "flow": FLOW}[kind])
        self._tell(open=kind, count=count, to=to, reopen=reopen, life=life)
        eventually(lambda: self._begun() >= before + count, f"{count} sessions", lambda: str(self.events()[-5:]))

    def close(self, backend: str | None = None, proxy: str | None = None) -> None:
        """Close sessions as clients do: all, those of a backend, or those through a proxy."""
        for address in (self.lab[proxy].ipv4, self.lab[proxy].ipv6) if proxy else (None,):
            self._tell(close=True, backend=backend, host=address)

    def events(self) -> list[dict]:
        """All events so far."""
        with self.log.open("rb") as log:
            log.seek(self._read)
            new = log.read()
        whole = new[: new.rfind(b"\n") + 1]  # the last line may be half written
        self._read += len(whole)
        self._events += [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]
        return self._events

    def _begun(self) -> int:
        return sum(item["event"] == "began" for item in self.events())

    def held(self, **keys: object) -> list[dict]:
        """The sessions that are open, as their last event says: those with these keys."""
        last = {item["id"]: item for item in self.events() if "id" in item}
        return [item for item in last.values() if item["event"] == "began" and keys.items() <= item.items()]

    def first(self) -> list[dict]:
        """The streams that were opened first, or those that have replaced them."""
        return [item for item in self.held(kind="stream") if item["id"] < SESSIONS]

    def wait_ended(self, patience: float, **keys: object) -> None:
        """Wait until every session with these keys has ended."""
        eventually(lambda: not self.held(**keys), f"none of {keys}", lambda: str(self.held(**keys)), patience=patience)

    # --- a step ---

    def walk(self, name: str, step: Callable[[Fleet], object], ends: Callable[[dict], bool]) -> Row:
        """Take a step, watch it for a while, and return its row, also if the step failed."""
        since, failure = time.time(), None
        try:
            step(self)
        except Exception as error:  # noqa: BLE001
            failure = error
        time.sleep(SETTLE)
        until = time.time()
        events = [item for item in self.events() if since <= item["at"] < until]
        return Row(name, until - since, events, self.old(), ends, failure)

    def old(self) -> str:
        """Return the old generations of each proxy: connections, memory, age of the oldest."""
        return " ".join(filter(None, map(self._old, self.hosts("proxies"))))

    def status(self, proxy: str) -> dict:
        """What ``l4proxy status --json`` prints; empty if it does not run."""
        done = self.lab[proxy].run(["l4proxy", "status", "--json"], check=False)
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def _old(self, proxy: str) -> str:
        old = self.status(proxy).get("old_generations", [])
        if not old:
            return ""
        sessions, memory = (sum(item[key] for item in old) for key in ("sessions", "memory"))
        age = max(item["age"] for item in old)
        return f"{proxy}: {len(old)} with {sessions} sessions, {memory / (1 << 20):.0f} MiB, {age:.0f} s"
