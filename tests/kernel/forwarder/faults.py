# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults between a and its backends, and the states of backends in the status document."""

from __future__ import annotations

import contextlib
import socket
import time

from tests.support import tcp
from tests.support.forwarding import BACKENDS, PROXY_ID, TABLE
from tests.support.waiting import eventually

SOURCES = {"ipv4": f"198.51.100.{PROXY_ID}", "ipv6": f"2001:db8:ffff::{PROXY_ID}"}
PROBES = tuple(SOURCES.values())


def backends(forwarder) -> dict:
    """The backends of the first service of the status, by name."""
    return {backend["name"]: backend for backend in forwarder.status()["services"][0]["backends"]}


def states(forwarder) -> list[str]:
    """The state of every backend and family."""
    return [target["state"] for backend in backends(forwarder).values() for target in backend["families"].values()]


def state(forwarder, name: str, family: str) -> str:
    """The state of one backend in one family."""
    return backends(forwarder)[name]["families"][family]["state"]


AGENT = 9707


class Agents:
    """An agent on both addresses of backends. ``says`` is {host: its line}; others close without a line.

    ``seen`` are (host, address of a client).
    """

    def __init__(self, lab, hosts=BACKENDS, **says: bytes):
        self.says = says
        self.seen: set[tuple[str, str]] = set()
        self._hosts = {address: name for name in BACKENDS for address in (lab[name].ipv4, lab[name].ipv6)}
        self._serving = tcp.serving(lab, hosts, AGENT, self._answer)

    def _answer(self, sock, peer):
        with sock:
            host = self._hosts[sock.getsockname()[0]]
            self.seen.add((host, peer[0]))
            sock.sendall(self.says.get(host, b""))

    def say(self, forwarder, **says: bytes) -> None:
        """Change the lines of some hosts, and wait until the forwarder knows."""
        self.says.update(says)
        for name, line in says.items():
            word = line.decode().split("#")[0].split()[0]

            def known(name=name, word=word):
                agent = backends(forwarder)[name]["agent"]
                return word in (*agent["word"].split(), f"{agent['weight']}%")

            eventually(known, f"{name} says {line!r}", forwarder.show)

    def __enter__(self):
        self._serving.__enter__()
        return self

    def __exit__(self, *exc_info):
        self._serving.__exit__(*exc_info)


def babble(kind: str, sock: socket.socket) -> None:
    """Answer a connection as an agent that says nothing useful; see BABBLE."""
    with sock, contextlib.suppress(OSError):
        sock.settimeout(1)
        while kind == "endless":
            sock.sendall(b"x" * 65536)
        for _byte in range(20 if kind == "drips" else 0):
            sock.sendall(b" ")
            time.sleep(0.05)
        sock.sendall(bytes(range(256)) if kind == "binary" else b"")
        sock.recv(1 if kind == "silent" else 0)


#: What the forwarder says of such an agent.
BABBLE = {"endless": "EMSGSIZE", "binary": "EBADMSG", "drips": "ETIMEDOUT", "silent": "ETIMEDOUT", "nothing": "EBADMSG"}


class BrokenReturnPath:
    """Remove the rule that sends b's replies of a family to a: they leave by b's default route."""

    def __init__(self, lab, family: str):
        self._host = lab["b"]
        self._command = ["ip", "-6" if family == "ipv6" else "-4", "rule"]
        self._rule = ["fwmark", f"{PROXY_ID}/0xff", "lookup", str(TABLE), "pref", "1100"]

    def __enter__(self):
        self._host.run([*self._command, "del", *self._rule])
        return self

    def __exit__(self, *exc_info):
        self._host.run([*self._command, "add", *self._rule])


class Unanswered:
    """Let b drop what arrives at a port in one family."""

    def __init__(self, lab, family: str, port: int):
        self._host = lab["b"]
        self._rule = f"meta nfproto {family} meta l4proto {{ tcp, udp }} th dport {port} drop"

    def __enter__(self):
        chain = f"chain in {{ type filter hook input priority filter; {self._rule}; }}"
        self._host.run(["nft", "-f", "-"], input=f"table inet unanswered {{\n{chain}\n}}\n")
        return self

    def __exit__(self, *exc_info):
        self._host.run(["nft", "delete", "table", "inet", "unanswered"])


class BogonFilter:
    """Let backends drop and count packets from the given sources.

    ICMP passes: without it, neighbour discovery would fail for all packets.
    """

    def __init__(self, lab, sources=PROBES):
        self._hosts = [lab[name] for name in BACKENDS]
        self._rules = "\n".join(
            f"  {'ip6' if ':' in source else 'ip'} saddr {source} meta l4proto {{ tcp, udp }} counter name seen drop"
            for source in sources
        )

    def __enter__(self):
        chain = f" chain in {{\n  type filter hook prerouting priority raw\n{self._rules}\n }}"
        for host in self._hosts:
            host.run(["nft", "-f", "-"], input=f"table inet bogon {{\n counter seen {{ }}\n{chain}\n}}\n")
        return self

    def seen(self) -> list[int]:
        """How many packets each backend has dropped."""
        listings = [host.run(["nft", "list", "counter", "inet", "bogon", "seen"]).stdout for host in self._hosts]
        return [int(listing.split("packets")[1].split()[0]) for listing in listings]

    def __exit__(self, *exc_info):
        for host in self._hosts:
            host.run(["nft", "delete", "table", "inet", "bogon"])
