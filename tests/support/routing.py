# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The routing engine on hosts of a lab, documents for it, and spoofed TCP connections."""

from __future__ import annotations

import json
import socket
import struct
import time
from contextlib import contextmanager

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host import sysctl
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import engine

from tests.lab.netns import NamespaceLab
from tests.support.addresses import AF, BITS, FAMILIES, address_of
from tests.support.waiting import PATIENCE

PROTOCOLS = {"ipv4": ("tcp", "udp", "icmp"), "ipv6": ("tcp", "udp", "ipv6-icmp")}
# (level, IP_TRANSPARENT), of linux/in.h and linux/in6.h
TRANSPARENT = {"ipv4": (socket.IPPROTO_IP, 19), "ipv6": (socket.IPPROTO_IPV6, 75)}
PORT = 8080


def local_delivery(*backends) -> dict:
    rules = [
        {"family": family, "priority": 1100, "src": f"{address_of(host, family)}/{BITS[family]}"}
        | {"ip_proto": protocol, "action": "lookup", "table": 20100}
        for host in backends
        for family in FAMILIES
        for protocol in PROTOCOLS[family]
    ]
    routes = [{"family": family, "table": 20100, "dst": "default", "type": "local", "dev": "lo"} for family in FAMILIES]
    return {"schema": 1, "owner": "local_delivery", "protocol": 201, "rules": rules, "routes": routes}


def return_path(*proxies, mac: bool = False, sysctls: tuple = ()) -> dict:
    """The document of a backend. ``proxies`` are hosts; the id is the last part of the IPv4 address."""
    rules, routes, marks = [], [], []
    for host in proxies:
        number = int(host.ipv4.rsplit(".", 1)[1])
        mark = {"fwmark": number, "fwmask": 255}
        for family in FAMILIES:
            lookup = {"action": "lookup", "table": 20100 + number}
            rules.append({"family": family, "priority": 1100, **mark, **lookup})
            rules.append({"family": family, "priority": 1101, **mark, "action": "unreachable"})
            routes.append(
                {"family": family, "table": 20100 + number, "dst": "default", "type": "unicast"}
                | {"via": address_of(host, family)}
            )
        marks.append(
            {"name": host.name, "id": number, "mask": 255, "mac": host.mac if mac else None}
            | {"via": [host.ipv4, host.ipv6]}
        )
    settings = [{"name": name, "value": value} for name, value in sysctls]
    names = ("rules", "routes", "marks", "sysctls")
    return {"schema": 1, "owner": "return_path", "protocol": 202, **dict(zip(names, (rules, routes, marks, settings)))}


class Engine:
    """The engine on the hosts of a lab; each host has its own sysctl memory and lock."""

    def __init__(self, directory):
        self.directory = directory

    def host(self, host, **options) -> engine.Host:
        memory = str(self.directory / f"{host.name}-sysctl.json")
        lock = str(self.directory / f"{host.name}.lock")
        return engine.Host(**{"sysctls": sysctl.Sysctls(memory), "lock": lock, "neighbour_wait": PATIENCE, **options})

    def apply(self, host, data: dict, options: dict | None = None, **arguments) -> engine.Outcome:
        with host.inside():
            return engine.reconcile(
                documents.load(data), self.host(host, **(options or {})), engine.Options(**arguments)
            )

    def remove(self, host, owner: str, **arguments) -> engine.Outcome:
        with host.inside():
            return engine.remove(owner, self.host(host), **arguments)


def make_whole(lab) -> None:
    """Apply both documents of the path between a and b, also to repair it."""
    lab.engine.apply(lab["a"], local_delivery(lab["b"]))
    lab.engine.apply(lab["b"], return_path(lab["a"]))


def listing(host) -> list[str]:
    """Everything that the engine could change on a host, as ip and nft list it, without counters."""
    commands = [
        ["ip", command, what, "show", *arguments]
        for command in ("-4", "-6")
        for what, arguments in (("rule", []), ("route", ["table", "all"]), ("addr", []))
    ]
    lines = [line for command in commands for line in host.run(command).stdout.splitlines() if not _passing(line)]
    return [*lines, *host.run(["nft", "-s", "list", "ruleset"]).stdout.splitlines()]


def _passing(line: str) -> bool:
    """Whether a line is a cached route (redirect, path MTU) or a route of the kernel's own."""
    return " expires " in line or "proto kernel" in line


@contextmanager
def left_as_found(lab: NamespaceLab, name: str):
    """A host without our objects; in the end they are removed, and the host must be as before."""
    host = lab[name]
    before = listing(host)
    try:
        yield host
    finally:
        lab.engine.remove(host, "return_path")
    assert listing(host) == before


def counters(host, table: str) -> dict[str, int]:
    """Packets counted in each chain of an inet table."""
    found: dict[str, int] = {}
    for item in json.loads(host.run(["nft", "-j", "list", "table", "inet", table]).stdout)["nftables"]:
        for statement in item.get("rule", {}).get("expr", []):
            if "counter" in statement:
                chain = item["rule"]["chain"]
                found[chain] = found.get(chain, 0) + statement["counter"]["packets"]
    return found


class Attempt:
    """A TCP connection attempt from any source address."""

    def __init__(self, host, source: str, target: str, port: int = PORT, source_port: int = 0):
        family = "ipv6" if ":" in target else "ipv4"
        with host.inside():
            self.socket = socket.socket(AF[family], socket.SOCK_STREAM)
        self.socket.setsockopt(*TRANSPARENT[family], 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.setblocking(False)
        self.socket.bind((source, source_port))
        self.socket.connect_ex((target, port))

    @property
    def state(self) -> int:
        """TCP_ESTABLISHED is 1, TCP_SYN_SENT is 2 (include/net/tcp_states.h)."""
        return self._info()[0]

    @property
    def retransmits(self) -> int:
        return self._info()[2]

    def _info(self) -> tuple:
        return struct.unpack("BBB", self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 3))

    def outcome(self) -> str:
        """``established``; ``silent`` if a SYN was retransmitted without an answer; or the name of the error."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            # State first: a handshake that completes in between must not look silent.
            retransmits, state = self.retransmits, self.state
            if state == 1:
                return "established"
            if state == 2 and retransmits:
                return "silent"
            error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                return OSError(error, "").strerror or str(error)
            time.sleep(0.01)
        raise AssertionError("neither an answer nor a retransmit")

    def close(self) -> None:
        # RST instead of FIN: nothing lingers on either side.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@contextmanager
def attempt(*arguments, **options):
    made = Attempt(*arguments, **options)
    try:
        yield made
    finally:
        made.close()


def handshake(host, source: str, target: str, port: int = PORT, source_port: int = 0) -> str:
    with attempt(host, source, target, port, source_port) as connection:
        return connection.outcome()


def snmp(host, group: str, name: str) -> int:
    """A counter of /proc/net/snmp, or of snmp6 (group ``6``)."""
    if group == "6":
        rows = host.run(["cat", "/proc/net/snmp6"]).stdout.splitlines()
        return int(dict(row.split() for row in rows)[name])
    rows = [row.split() for row in host.run(["cat", "/proc/net/snmp"]).stdout.splitlines()]
    names, values = (row for row in rows if row[0] == f"{group}:")
    return int(dict(zip(names, values))[name])


def watch(host, name: str, chain: str, *rules: str) -> None:
    """Add a table with counting rules; ``chain`` is the text after ``type filter hook``."""
    body = "\n".join(f"    {rule}" for rule in rules)
    text = f"table inet {name} {{\n  chain {name} {{\n    type filter hook {chain};\n{body}\n  }}\n}}\n"
    host.run(["nft", "-f", "-"], input=f"table inet {name}\ndelete table inet {name}\n{text}")
