# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fleet in namespaces: documents are derived from services and variables, and applied by the engine.

fleet = Deployment(lab, tmp_path, services, {"b": {"return_path_strategy": "address", ...}})
fleet.apply()
fleet.exchange("a", "b", "ipv4", "tcp")
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._kernel_datapath import kernel_datapath
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._local_delivery import local_delivery
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._reachability import backend_addresses
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path import return_path

from tests.support.addresses import AF, FAMILIES, address_of
from tests.support.routing import PORT, TRANSPARENT, Engine, counters, watch
from tests.support.waiting import PATIENCE

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
VERSION = {"ipv4": 4, "ipv6": 6}
PROXIES, BACKENDS = ("a", "a2"), ("b", "c", "d")
WILDCARD = {"ipv4": "0.0.0.0", "ipv6": "::"}
# ip(7) and linux/in.h; the socket module of Python 3.9 has neither.
IP_BIND_ADDRESS_NO_PORT, IP_LOCAL_PORT_RANGE = 24, 51
LISTEN = {"tcp": ["0.0.0.0:80", "[::]:80"], "udp": ["0.0.0.0:53", "[::]:53"]}


def service(protocol: str, *backends: str, **more: Any) -> dict[str, Any]:
    """A service of one protocol on port 8080 of each backend."""
    rows = [f"{name}:{PORT}" for name in backends]
    return {"name": protocol, "protocol": protocol, "listen": LISTEN[protocol], "backends": rows, **more}


def facts(host: Any) -> dict[str, Any]:
    """The facts of a host of the lab that the derivation uses, as ansible.builtin.setup returns them."""
    inside = host.on("inside")
    ethernet = {
        "device": inside.dev,
        "macaddress": inside.mac,
        "ipv4": {"address": inside.ipv4, "prefix": "24"},
        "ipv6": [{"address": inside.ipv6, "prefix": "64"}],
    }
    defaults = {f"default_{family}": {"address": address_of(inside, family)} for family in FAMILIES}
    return {**defaults, inside.dev: ethernet}


def source_of(proxy: Any, family: str) -> str:
    """A client address for each proxy, to tell their replies apart."""
    number = proxy.spec.number
    return f"198.51.100.{number}" if family == "ipv4" else f"2001:db8:ffff::{number}"


def by_strategy(
    lab: Any, strategy: str, backends: Iterable[str] = BACKENDS, proxies: Iterable[str] = PROXIES
) -> dict[str, dict[str, Any]]:
    """Variables of the backends: the strategy, and the addresses that strategy ``address`` uses for each proxy.

    They are 198.18.0.121 and 2001:db8::121 of b for a, 198.18.0.171 and so on for a2.
    """
    more = {"a": 100, "a2": 150}

    def addresses(host: Any) -> dict[str, list[str]]:
        numbers = {proxy: host.spec.number + more[proxy] for proxy in proxies}
        return {proxy: [f"198.18.0.{number}", f"2001:db8::{number}"] for proxy, number in numbers.items()}

    return {
        name: {"return_path_strategy": strategy, "return_path_addresses": addresses(lab[name])} for name in backends
    }


class Deployment:
    """The documents of all hosts of a lab, derived and applied as the roles do it."""

    def __init__(
        self,
        lab: Any,
        directory: Path,
        services: list[dict[str, Any]],
        variables: Mapping[str, Any],
        proxies: Iterable[str] = PROXIES,
        backends: Iterable[str] = BACKENDS,
    ):
        self.lab, self.directory, self.services = lab, directory, services
        self.engine = Engine(directory)
        self.proxies, self.backends = list(proxies), list(backends)
        self.variables = dict(variables)
        # Other facts of a host: its sysctls, and the documents of an earlier run.
        self.settings: list[str] = []
        self.known: dict[str, Any] = {}

    def fleet(self, name: str) -> Fleet:
        """The fleet as seen from a host."""
        names = [*self.proxies, *self.backends]
        hostvars = {host: {"ansible_facts": facts(self.lab[host]), **self.variables.get(host, {})} for host in names}
        view = {"host": name, "proxies": self.proxies, "backends": self.backends, "inventory": names}
        view |= {"settings": self.settings, "known": self.known}
        return Fleet(self.services, view, hostvars)

    def apply(self, **options: Any) -> None:
        """Apply the documents of both ends, in the order of the playbook ``site``."""
        self.apply_backends(**options)
        self.apply_proxies(**options)

    def apply_backends(self, **options: Any) -> None:
        for name in self.backends:
            self.apply_document(name, return_path(self.fleet(name), name), options)

    def apply_proxies(self, method: str = "auto", **options: Any) -> None:
        for name in self.proxies:
            self.apply_document(name, local_delivery(self.fleet(name), name, method), options)
            if document := kernel_datapath(self.fleet(name), name):
                self.apply_document(name, document, options)

    def apply_document(
        self, name: str, document: dict[str, Any], options: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """Apply one document of a host."""
        self.stored(name).mkdir(parents=True, exist_ok=True)
        self.engine.apply(self.lab[name], document, directory=str(self.stored(name)), **options)

    def stored(self, name: str) -> Path:
        """The directory of a host's documents."""
        return self.directory / name

    def remove(self) -> None:
        """Remove everything that was applied."""
        for names, owner in ((self.proxies, "local_delivery"), (self.backends, "return_path")):
            for name in names:
                self.engine.remove(self.lab[name], owner, directory=str(self.stored(name)))

    def target(self, proxy: str, backend: str, family: str) -> str:
        """The address at which a proxy reaches a backend."""
        seen = self.fleet(proxy)
        refs = [ref for one in seen.services_of_proxy(proxy) for ref in one.backends if ref.host == backend]
        return backend_addresses(seen, proxy, refs[0])[VERSION[family]]

    def exchange(self, proxy: str, backend: str, family: str, protocol: str) -> bytes:
        """The answer of a backend to the proxy's client."""
        source = source_of(self.lab[proxy], family)
        with spoofed(self.lab[proxy], source, self.target(proxy, backend, family), protocol) as sock:
            return ask(sock)


@contextmanager
def spoofed(host: Any, source: str, target: str, protocol: str, port: int = PORT, source_port: int = 0):
    """A transparent socket that connects to a server from any source address; over TCP it may still be connecting."""
    family = "ipv6" if ":" in target else "ipv4"
    with host.inside():
        sock = socket.socket(AF[family], KINDS[protocol])
    with sock:
        sock.setsockopt(*TRANSPARENT[family], 1)
        sock.settimeout(PATIENCE)
        sock.bind((source, source_port))
        sock.connect((target, port))
        yield sock


def ask(sock: socket.socket, question: bytes = b"who is there?") -> bytes:
    sock.send(question)
    return sock.recv(100)


class EchoServers(threading.Thread):
    """TCP and UDP servers on hosts of the lab; each answers with its host's name."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._selector = selectors.DefaultSelector()
        self._wake, waker = socket.socketpair()
        self._selector.register(waker, selectors.EVENT_READ, lambda _sock: None)
        self._ending = False

    def serve(self, host: Any, protocol: str, address: str, port: int = PORT) -> socket.socket:
        """Listen on an address of a host, or on ``0.0.0.0`` or ``::``."""
        family = "ipv6" if ":" in address else "ipv4"
        with host.inside():
            sock = socket.socket(AF[family], KINDS[protocol])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == "ipv6":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.setblocking(False)
        name = host.name.encode()
        if protocol == "tcp":
            sock.listen(4096)
            self._selector.register(sock, selectors.EVENT_READ, lambda one: self._accept(one, name))
        else:
            self._selector.register(sock, selectors.EVENT_READ, lambda one: _answer(one, name))
        self._wake.send(b"x")
        return sock

    def stop_serving(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        sock.close()

    def _accept(self, listener: socket.socket, name: bytes) -> None:
        connection, _peer = listener.accept()
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, lambda one: self._reply(one, name))

    def _reply(self, connection: socket.socket, name: bytes) -> None:
        try:
            if connection.recv(100):
                connection.send(name)
                return
        except OSError:
            pass  # reset: the test is done with it
        self.stop_serving(connection)

    def run(self) -> None:
        while not self._ending:
            for key, _events in self._selector.select():
                key.data(key.fileobj)

    def close(self) -> None:
        self._ending = True
        self._wake.send(b"x")
        self.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()
        self._wake.close()


@contextmanager
def echo_servers(lab: Any, hosts: Iterable[str], protocols: Iterable[str] = ("tcp",)):
    """``lab.servers``: EchoServers on the wildcard addresses of hosts."""
    lab.servers = EchoServers()
    lab.servers.start()
    for name in hosts:
        for address in WILDCARD.values():
            for protocol in protocols:
                lab.servers.serve(lab[name], protocol, address)
    yield lab
    lab.servers.close()


def _answer(sock: socket.socket, name: bytes) -> None:
    try:
        _question, peer = sock.recvfrom(100)
        sock.sendto(name, peer)
    except OSError:
        pass  # the reply has no way: what a negative control wants


def watch_replies(lab: Any, proxies: Sequence[str] = PROXIES) -> None:
    """Count packets to each proxy's client where they arrive: at that proxy, at another one, or at the router."""

    def rules(names: Iterable[str]) -> list[str]:
        return [
            f"{word} daddr {source_of(lab[name], family)} counter"
            for name in names
            for word, family in (("ip", "ipv4"), ("ip6", "ipv6"))
        ]

    for name in proxies:
        watch(lab[name], "own", "prerouting priority -300", *rules([name]))
        watch(lab[name], "stray", "prerouting priority -300", *rules(other for other in proxies if other != name))
    watch(lab["router"], "leaks", "prerouting priority -300", *rules(proxies))


def replies(lab: Any, proxies: Sequence[str] = PROXIES) -> dict[str, int]:
    """The counts of :func:`watch_replies`: by proxy, ``stray`` (at another proxy) and ``leaks`` (at the router)."""
    found = {name: counters(lab[name], "own")["own"] for name in proxies}
    found["stray"] = sum(counters(lab[name], "stray").get("stray", 0) for name in proxies)
    found["leaks"] = counters(lab["router"], "leaks")["leaks"]
    return found
