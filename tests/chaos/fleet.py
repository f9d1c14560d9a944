# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fleet in the container lab under load: its hosts, its keepers' repairs, and what its clients see."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.load import PATIENCE as CONNECTION
from tests.lab import ansible, wiring
from tests.lab.containers import ContainerLab
from tests.lab.netns import stop
from tests.support import streams as streams_program
from tests.support.takeover import Streams
from tests.support.waiting import eventually

BACKENDS = ("b", "c", "d")
RATE = 40
FORWARDER, KERNEL, STREAMS = 80, 81, 82  # ports of the proxy
STREAMS_BACKEND = 8082
#: Seconds after which the load ends by itself: longer than all tests.
LONGEST = 1200
WITHIN = 2.0  # seconds from a fault until it is repaired
WEB_SERVERS = ansible.REPOSITORY / "tests" / "lab" / "playbooks" / "web_servers.yml"
INVENTORY = Path(__file__).with_name("inventory.yml")
DOCUMENT = "/etc/l4proxy/routing.d/return_path.json"
LOAD = Path(__file__).with_name("load.py")

#: Prints everything of ours on a host, sorted, so that intact hosts compare equal.
OURS = """
for family in -4 -6; do
    ip $family rule | grep -E 'proto 20[124]' | sort
    ip $family route show table all | grep -E 'proto 20[12]' | sort
done
for owner in local_delivery return_path datapath; do nft --stateless list table inet l4proxy_$owner 2>/dev/null; done
for command in iptables-save ip6tables-save; do $command -t mangle 2>/dev/null | grep L4PROXY; done
true
"""


@dataclass(frozen=True)
class Noticed:
    """Connections of a period: all, and how many of each datapath are lost. ``slowest`` is in seconds, of those served;
    ``leaked`` counts packets at the router. ``streams`` are long ones of the kernel, ``late`` is the longest silence of
    each kind.
    """

    connections: int
    lost: int
    lost_by_kernel: int
    slowest: float
    leaked: int
    streams: int
    lost_streams: int
    late: dict[str, float]

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells of the table."""
        late = " ".join(f"{kind} {seconds:.1f}" for kind, seconds in self.late.items())
        counts = (self.connections, self.lost, self.lost_by_kernel, f"{self.slowest:.2f}", self.leaked)
        return (*map(str, counts), f"{self.lost_streams} of {self.streams}" if self.streams else "", late)


class Fleet:
    """``site`` has been run; in both families, 20 connections a second for each datapath go through a."""

    def __init__(self, lab: ContainerLab, log: Path):
        self.lab, self._log = lab, log

    def __getitem__(self, name: str):
        return self.lab[name]

    def sh(self, name: str, script: str, timeout: float = 60) -> str:
        return self.lab[name].run(["/bin/sh", "-ec", script], timeout=timeout).stdout

    def ours(self, name: str) -> str:
        return self.lab[name].run(["/bin/sh", "-c", OURS]).stdout

    def whole_at(self, name: str, whole: str) -> float:
        """When a host was found intact (monotonic), or 0.0 if it is not."""
        now = time.monotonic()
        return now if self.ours(name) == whole else 0.0

    def state(self, name: str) -> dict:
        """The keeper's state file; empty before it has written one."""
        done = self.lab[name].run(["cat", "/run/l4proxy-keeper/state.json"], check=False)
        return json.loads(done.stdout) if done.stdout else {}

    def count(self, name: str) -> int:
        """How many repairs the keeper of a host has counted since it was booted."""
        return self.state(name).get("repairs", {}).get("total", 0)

    def keeper(self, name: str, verb: str) -> None:
        self.lab[name].run(["systemctl", verb, "l4proxy-keeper"])

    def change_document(self, name: str, change: Callable[[dict], None]) -> None:
        """Edit a backend's document and have its keeper apply it."""
        document = json.loads(self.sh(name, f"cat {DOCUMENT}"))
        change(document)
        self.lab[name].run(["tee", DOCUMENT], input=json.dumps(document))
        self.keeper(name, "reload")

    def leaked(self, host: str) -> int:
        """Replies that a backend (any backend, if ``host`` is none) has sent to the router instead of its proxy.

        A connection that began without a mark bypasses its proxy for a minute (tcp_synack_retries), so leaks of other
        backends may come from an earlier fault.
        """
        listing = json.loads(self.lab["router"].run(["nft", "-j", "list", "table", "inet", "leaks"]).stdout)
        rules = [item["rule"] for item in listing["nftables"] if "rule" in item]
        mine = [rule["expr"] for rule in rules if rule["comment"] == host or host not in BACKENDS]
        return sum(part["counter"]["packets"] for rule in mine for part in rule if "counter" in part)

    def connections(self) -> list[dict]:
        lines = self._log.read_text(encoding="utf-8").splitlines()
        # The last line may be half written.
        return [json.loads(line) for line in lines if line.endswith("}")]

    def noticed(self, since: float, until: float, leaked: int, streams: Iterable[Streams] = ()) -> Noticed:
        """The connections that began in a period; all of them must have ended. And streams, since they were marked."""
        mine = [item for item in self.connections() if since <= item["at"] < until]
        slowest = max((item["seconds"] for item in mine if not item["error"]), default=0.0)
        lost = [item["port"] for item in mine if item["error"]]
        kinds = [kind for running in streams for kind in running.report().items()]
        count = sum(values["of"] for _kind, values in kinds)
        late = {name: max(values["silence"] for kind, values in kinds if kind == name) for name, _values in kinds}
        gone = count - sum(values["moved"] for _kind, values in kinds)
        return Noticed(len(mine), lost.count(FORWARDER), lost.count(KERNEL), slowest, leaked, count, gone, late)


def count_leaks(lab: ContainerLab) -> None:
    """Count replies that backends send to the router instead of their proxy."""
    rules = [
        f"{word} saddr {getattr(lab[name], family)} tcp sport {{ 8080, 8081 }} counter comment {name}"
        for name in BACKENDS
        for word, family in (("ip", "ipv4"), ("ip6", "ipv6"))
    ]
    chain = "chain leaks { type filter hook prerouting priority -300;\n" + "\n".join(rules) + "\n}"
    lab["router"].run(["nft", "-f", "-"], input=f"table inet leaks {{\n{chain}\n}}\n")


def serve_streams(lab: ContainerLab) -> None:
    """Start the servers of long streams on the backends, unless they run. They end with the host."""
    program = Path(streams_program.__file__).read_text(encoding="utf-8")
    for name in BACKENDS:
        lab[name].run(["tee", "/root/streams.py"], input=program)
        start = f"systemd-run --unit=streams --collect python3 /root/streams.py serve {name} {STREAMS_BACKEND}"
        lab[name].run(["/bin/sh", "-c", f"systemctl is-active streams || {start}"])


@contextmanager
def under_load(lab: ContainerLab, directory: Path):
    """Deploy, start the load, and yield the fleet once connections succeed."""
    serve_streams(lab)
    for playbook in (str(WEB_SERVERS), "trueip.l4proxy.site"):
        run = ansible.play(lab.prefix, playbook, [INVENTORY])
        assert run.status == 0, run.output
    count_leaks(lab)
    log = directory / "load.log"
    proxy = lab["a"]
    targets = [f"{host}:{port}" for port in (FORWARDER, KERNEL) for host in (proxy.ipv4, f"[{proxy.ipv6}]")]
    argv = [sys.executable, str(LOAD), str(RATE), str(LONGEST), *targets]
    with log.open("w", encoding="utf-8") as output:
        load = subprocess.Popen(lab["client"].argv(argv), stdout=output, stderr=subprocess.STDOUT)
    try:
        fleet = Fleet(lab, log)
        eventually(lambda: sum(not item["error"] for item in fleet.connections()) > RATE)
        yield fleet
    finally:
        stop(load)


def plug_in_again(lab: ContainerLab, name: str) -> None:
    """Restore IPv6 addresses and default routes after a link flap, as ifupdown or networkd would."""
    for command in wiring.host_commands(lab.topology, lab.topology.hosts[name]):
        wiring.run(["ip", "-netns", lab.name_of(name), *command.replace(" add ", " replace ").split()])


def measure(
    fleet: Fleet,
    report,
    name: str,
    host: str,
    harm: Callable[[], object],
    whole: str | None = None,
    boots: bool = False,
    streams: Iterable[Streams] = (),
    within: float = WITHIN,
) -> tuple[dict, Noticed]:
    """Cause a fault, wait until the host is intact again, and report what clients saw.

    Returns the keeper's state, and that.

    ``whole`` is the expected listing, if not the one from before. ``boots``: the host restarts, its counts begin at 0.
    """
    whole = whole or fleet.ours(host)
    for running in streams:
        running.mark()
    repairs, leaked, began = fleet.count(host), fleet.leaked(host), time.time()
    harm()
    harmed = time.monotonic()
    # A listing takes up to a second on a busy machine, so what counts is when it began.
    healed = eventually(lambda: fleet.whole_at(host, whole)) - harmed
    until = time.time() + 0.5
    eventually(lambda: time.time() > until + CONNECTION)
    state = fleet.state(host)
    noticed = fleet.noticed(began, until, fleet.leaked(host) - leaked, streams)
    count = state["repairs"]["total"] - (0 if boots else repairs)
    who = (state["last_repair"] or {}).get("who", "") if count else ""
    report(name, f"{healed:.2f}", f"start {state['restored_at_start']}" if boots else count, noticed, who)
    assert healed <= within
    assert noticed.connections
    return state, noticed
