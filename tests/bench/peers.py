# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The peers: the forwarder as it ships, HAProxy and nginx of two Debian releases, and the kernel.

Each peer forwards the same ports of the proxy host to the backend, with the client's address as the source. A peer of
your own is one line: L4PROXY_BENCH_PEER='name=command … {listen} {backend}', where the two words become ADDRESS:PORT of
the HTTP service. It is left out of works that need a port on which it does not listen.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.datapath.model import Table
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.datapath.render import render
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.datapath.table import Datapath
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.kernel_service import (
    KernelService,
    Server,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.runner import run
from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _archive

from tests.bench import debian13, measure
from tests.lab import earlier
from tests.lab.netns import NamespaceLab, stop
from tests.support.forwarding import AS_DAEMON, Forwarder, make_config
from tests.support.routing import Engine, local_delivery

HTTP, BULK, HOLD, UDP = 8080, 5201, 9000, 5353
TCP_PORTS = (HTTP, BULK, HOLD)
MOST_FILES = 20000
#: nf_conntrack_max, as the table is told. A service may have 1/128 of it as new connections in a second; of the default
#: that would be fewer than the works make.
CONNTRACK = 1 << 22
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SETTLED = 0.5  # seconds without a new process


@dataclass(frozen=True)
class Setting:
    """How a peer is started: worker processes (or threads), whether it logs a line a connection, and forwards UDP."""

    workers: int = 1
    log: bool = False
    udp: bool = False  # on top of TCP; a worker that serves UDP keeps descriptors for it


class Running:
    """A peer that forwards; ``cpu()`` and ``memory()`` are of all its processes together.

    One in the kernel has no process; ``undo`` ends it.
    """

    def __init__(self, process: subprocess.Popen | None, undo: Callable[[], object] = lambda: None):
        self._process, self._undo = process, undo

    def pids(self) -> list[int]:
        return measure.family(self._process.pid) if self._process else []

    def cpu(self) -> float:
        return measure.cpu_seconds(self.pids())

    def memory(self) -> int:
        return measure.memory(self.pids())

    def listens(self, port: int) -> bool:
        """Whether one of its processes listens on a port of TCP (state 0A in /proc/PID/net/tcp)."""
        rows = [row.split() for pid in self.pids()[:1] for row in measure.listing(pid, "tcp", "tcp6")]
        return any(row[3] == "0A" and row[1].endswith(f":{port:04X}") for row in rows)

    def settle(self) -> None:
        """Wait until it starts no more processes: it may forward before all are running."""
        found = self.pids()
        while True:
            time.sleep(SETTLED)
            found, before = self.pids(), found
            if found == before:
                return

    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process is not None and self._process.poll() is not None

    def said(self) -> str:
        """The peer's output."""
        return self._process.log.read_text(encoding="utf-8") if self._process else ""

    def stop(self) -> None:
        if self._process:
            stop(self._process)
        self._undo()


@dataclass(frozen=True)
class Peer:
    """A peer by name: the host of the lab it is reached at, what it can do, and how it is started there."""

    name: str
    start: Callable[[NamespaceLab, Path, Setting], Running]
    host: str = "a"
    udp: bool = False
    #: Whether it is the best there is of its kind: works that are no quick ones are put on nobody else.
    best: bool = True
    #: Whether it forwards every port of TCP; one that may not is looked at.
    complete: bool = True
    #: What it was set to beyond its defaults, for the page that shows the figures.
    settings: str = "defaults"


def l4proxy(lab: NamespaceLab, directory: Path, setting: Setting, archive: Path | None = None) -> Running:
    """The archive as the role installs it, or another one, run by the distribution's python3."""

    def service(port: int, protocol: str) -> dict:
        return {
            "name": f"{protocol}-{port}",
            "protocol": protocol,
            "listen": [{"address": lab["a"].ipv4, "port": port}],
            "backends": [{"name": "b", "ipv4": lab["b"].ipv4, "port": port}],
            "log": "all" if setting.log else "errors",
            # iperf3 serves one client at a time, and a health check would be one.
            "health": {"enabled": port != BULK},
        }

    ports = [*((port, "tcp") for port in TCP_PORTS), *([(UDP, "udp")] if setting.udp else [])]
    services = [service(port, protocol) for port, protocol in ports]
    document = make_config(*services, workers=setting.workers)
    forwarder = Forwarder(lab, document, wrapper=AS_DAEMON, archive=archive)
    return Running(forwarder.serve().process)


def _earlier(lab: NamespaceLab, directory: Path, setting: Setting) -> Running:
    archive = lab.tmp / "earlier.pyz"
    if not archive.exists():
        sources = _archive.sources(earlier.unpack(lab.tmp / "earlier"))
        archive.write_bytes(_archive.archive(sources))
    return l4proxy(lab, directory, setting, archive)


Start = Callable[[NamespaceLab, Path, Setting], Running]


def _haproxy(program: Program, tuned: bool) -> Start:
    tuning, options = HAPROXY_TUNING if tuned else ("", "")

    def start(lab: NamespaceLab, directory: Path, setting: Setting) -> Running:
        frontends = "".join(
            f"frontend f{port}\n  bind {lab['a'].ipv4}:{port}\n  default_backend b{port}\n"
            f"backend b{port}\n  source 0.0.0.0 usesrc clientip\n  server b {lab['b'].ipv4}:{port}\n"
            for port in TCP_PORTS
        )
        log = ("  log stdout format raw local0\n", "  log global\n  option tcplog\n") if setting.log else ("", "")
        config = directory / "haproxy.cfg"
        config.write_text(
            f"global\n  maxconn 8500\n  maxpipes 1000\n  nbthread {setting.workers}\n{tuning}{log[0]}"
            f"defaults\n  mode tcp\n  option splice-auto\n{options}  timeout connect 5s\n  timeout client 60s\n"
            f"  timeout server 60s\n{log[1]}{frontends}",
            encoding="utf-8",
        )
        return Running(lab["a"].spawn([*program("haproxy"), "-db", "-f", str(config)]))

    return start


def _nginx(program: Program, modules: Path, tuned: bool) -> Start:
    tuning = NGINX_TUNING if tuned else ""

    def start(lab: NamespaceLab, directory: Path, setting: Setting) -> Running:
        log = f"access_log {directory}/stream.log lines;" if setting.log else "access_log off;"
        ports = [(port, " backlog=4096") for port in TCP_PORTS] + ([(UDP, " udp reuseport")] if setting.udp else [])
        servers = "".join(
            f"  server {{ listen {lab['a'].ipv4}:{port}{kind}; proxy_pass {lab['b'].ipv4}:{port}; }}\n"
            for port, kind in ports
        )
        config = directory / "stream.conf"
        config.write_text(
            f"load_module {modules}/ngx_stream_module.so;\ndaemon off;\nuser root;\n"
            f"worker_processes {setting.workers};\nworker_rlimit_nofile {MOST_FILES};\npid {directory}/stream.pid;\n"
            f"error_log {directory}/stream-error.log;\nevents {{ worker_connections {MOST_FILES - 100}; }}\nstream {{\n"
            "  log_format lines '$remote_addr [$time_local] $protocol $status $bytes_sent $bytes_received"
            " $session_time $upstream_addr';\n"
            f"  {log}\n  proxy_bind $remote_addr transparent;\n  proxy_timeout 60s;\n{tuning}{servers}}}\n",
            encoding="utf-8",
        )
        return Running(
            lab["a"].spawn([*program("nginx"), "-c", str(config), "-e", str(directory / "stream-error.log")])
        )

    return start


def _nothing(lab: NamespaceLab, directory: Path, setting: Setting) -> Running:
    return Running(None)


def _dnat(lab: NamespaceLab, directory: Path, setting: Setting) -> Running:
    """The least that nftables needs to forward the ports."""
    host, target = lab["a2"], lab["b"].ipv4
    rules = "".join(
        f"    ip daddr {host.ipv4} {protocol} dport {{ {', '.join(map(str, ports))} }} dnat ip to {target}\n"
        for protocol, ports in (("tcp", TCP_PORTS), ("udp", [UDP]))
    )
    chain = f"  chain in {{\n    type nat hook prerouting priority dstnat;\n{rules}  }}\n"
    host.run(["nft", "-f", "-"], input=f"table ip bench {{\n{chain}}}\n")
    return Running(None, lambda: host.run(["nft", "delete", "table", "ip", "bench"]))


def _kernel(lab: NamespaceLab, directory: Path, setting: Setting) -> Running:
    """The table of the product, and what goes with it on a proxy."""
    host, target = lab["a2"], lab["b"].ipv4
    services = [
        KernelService(f"{protocol}{port}", "ipv4", protocol, host.ipv4, port, (Server("b", target, port),))
        for protocol, ports in (("tcp", TCP_PORTS), ("udp", [UDP]))
        for port in ports
    ]
    rule = ["fwmark", "0xff/0xff", "lookup", "main", "priority", "1099"]

    def write(table: Table) -> None:
        with host.inside():
            datapath = Datapath(run)
            datapath.write(datapath.read(), table)

    engine = Engine(lab.tmp)
    engine.apply(host, local_delivery(lab["b"]))
    host.run(["ip", "rule", "add", *rule])
    host.sysctl("net.ipv4.conf.all.src_valid_mark", "1")
    host.sysctl("net.netfilter.nf_conntrack_acct", "1")
    host.sysctl("net.ipv4.ip_early_demux", "0")
    write(render(services, entries=CONNTRACK, strangers=frozenset({"ipv4"})))

    def undo() -> None:
        write(render(()))
        host.sysctl("net.netfilter.nf_conntrack_acct", "0")
        host.sysctl("net.ipv4.ip_early_demux", "1")
        host.run(["ip", "rule", "del", *rule])
        engine.remove(host, "local_delivery")

    return Running(None, undo)


#: Lines of the global section, and of the defaults.
HAPROXY_TUNING = (
    "  tune.pipesize 262144\n  tune.bufsize 65536\n",
    "  option tcp-smart-accept\n  option tcp-smart-connect\n",
)
NGINX_TUNING = "  proxy_buffer_size 256k;\n  tcp_nodelay on;\n"


#: Returns the command line of a program by its name.
Program = Callable[[str], "list[str]"]


def _of_release(suffixes: tuple[str, str], program: Program, modules: Path) -> tuple[Peer, ...]:
    """HAProxy and nginx of a Debian release, each with two settings."""
    names = [f"{name}{suffix}" for name, suffix in zip(("haproxy", "nginx"), suffixes)]
    tuning = [" ".join(text.split()) for text in ("".join(HAPROXY_TUNING), NGINX_TUNING)]
    nginx = {"udp": True, "best": False, "settings": "stream, proxy_bind $remote_addr transparent"}
    return (
        Peer(names[0], _haproxy(program, False), best=False, settings="usesrc clientip, splice-auto"),
        Peer(f"{names[0]}-tuned", _haproxy(program, True), settings=tuning[0]),
        Peer(names[1], _nginx(program, modules, False), **nginx),
        Peer(f"{names[1]}-tuned", _nginx(program, modules, True), udp=True, settings=tuning[1]),
    )


PEERS = (
    Peer("l4proxy", l4proxy, udp=True, settings="as the role installs it, log: errors unless logging is measured"),
    *_of_release(("", ""), lambda name: [name], Path("/usr/lib/nginx/modules")),
    *_of_release(("-3.0", "-1.26"), debian13.command, debian13.NGINX_MODULES),
)
#: No proxies: the ends of the scale (nothing, and the kernel's own address translation), and our kernel datapath.
DIRECT = Peer("direct", _nothing, host="b", udp=True, settings="no proxy")
DNAT = Peer("dnat", _dnat, host="a2", udp=True, settings="nftables, two rules, on a proxy host of its own")
KERNEL = Peer("kernel", _kernel, host="a2", udp=True, settings=f"datapath: kernel, nf_conntrack_max {CONNTRACK}")
ENDS = (DIRECT, DNAT, KERNEL)


class BadPeer(ValueError):
    """L4PROXY_BENCH_PEER is invalid; the message says why."""


def more() -> tuple[Peer, ...]:
    """An earlier version of ours where FROM names one, and the peer of L4PROXY_BENCH_PEER; raise BadPeer."""
    found = (Peer("l4proxy-before", _earlier, udp=True, settings=earlier.REVISION),) if os.environ.get("FROM") else ()
    text = os.environ.get("L4PROXY_BENCH_PEER", "")
    return (*found, _own(text)) if text else found


def _own(text: str) -> Peer:
    name, _equals, command = text.partition("=")
    words = _words(command)
    if not NAME.fullmatch(name) or not words:
        raise BadPeer(f"{text!r} is not NAME=COMMAND; a name has letters, digits, '.', '_' and '-'")
    if name in {peer.name for peer in (*PEERS, *ENDS)}:
        raise BadPeer(f"{name} is already the name of another peer; choose another name")
    if not shutil.which(words[0]):
        raise BadPeer(f"program {words[0]} not found")
    _filled(words, "", "")

    def start(lab: NamespaceLab, directory: Path, setting: Setting) -> Running:
        return Running(lab["a"].spawn(_filled(words, f"{lab['a'].ipv4}:{HTTP}", f"{lab['b'].ipv4}:{HTTP}")))

    return Peer(name, start, complete=False, settings=json.dumps(command))


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise BadPeer(f"{command!r} is not a command line: {error}") from None


def _filled(words: list[str], listen: str, backend: str) -> list[str]:
    """Fill the addresses into a command line."""
    try:
        return [word.format(listen=listen, backend=backend) for word in words]
    except (KeyError, IndexError, ValueError) as error:
        raise BadPeer(f"{shlex.join(words)!r}: only {{listen}} and {{backend}} are filled in ({error!r})") from None
