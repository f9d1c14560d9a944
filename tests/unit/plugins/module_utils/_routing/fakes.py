# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fake host: rules and routes in lists, nft in memory, /proc in a directory. For engine, keeper and modules."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.datapath.model import Live, transaction
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import formatting
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Address
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import MissingPackage
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host import sysctl
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.runner import Completed, MissingCommand
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.marks import nft
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.kernel import COMMON_TABLES, KernelObject
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import engine, needs


class FakeKernel:
    """Objects with their protocol number. Calls whose text contains ``fail`` raise; those with ``lose`` have no effect.

    ``fail_at`` is the number of the call that raises.
    """

    def __init__(self):
        self.held_rules, self.held_routes = [], []
        self.neighbours: dict[str, str] = {}
        self.near = {"198.18.0.11": "eth0", "198.18.0.12": "eth0", "2001:db8::11": "eth0"}
        self.kinds: dict[str, str] = {}
        self.links_up = {"lo": True, "eth0": True, "eth8": False}
        self.held_addresses = [(Address("ipv4", "198.18.0.21", "eth0"), 0)]
        self.calls: list[str] = []
        self.fail, self.lose, self.fail_at = "", "", 0
        self.forgotten = 0

    def _does(self, name: str, value: object) -> bool:
        self.calls.append(f"{name} {formatting.describe(value)}")
        if len(self.calls) == self.fail_at or (self.fail and self.fail in self.calls[-1]):
            raise OSError(12, "Cannot allocate memory")
        return not (self.lose and self.lose in self.calls[-1])

    def rules(self):
        held = self.held_rules
        return [KernelObject(rule, owner, rule.family, 0, formatting.describe(rule)) for rule, owner in held]

    def routes(self, protocol=0, table=0):
        return [
            KernelObject(route, owner, route.family, route.table, formatting.describe(route))
            for route, owner in self.held_routes
            if (route.table == table if table else route.table not in COMMON_TABLES) and protocol in (0, owner)
        ]

    def add_rule(self, rule, protocol):
        if self._does("add", rule):
            self.held_rules.append((rule, protocol))

    def remove_rule(self, rule, protocol):
        if self._does("remove", rule):
            self.held_rules.remove((rule, protocol))

    def set_route(self, route, protocol):
        if self._does("set", route):
            self.held_routes = [pair for pair in self.held_routes if pair[0].key != route.key] + [(route, protocol)]

    def remove_route(self, route, protocol):
        if self._does("remove", route):
            self.held_routes.remove((route, protocol))

    def add_address(self, address, protocol):
        if self._does("add", address):
            self.held_addresses.append((address, protocol))

    def remove_address(self, address, protocol):
        if self._does("remove", address):
            self.held_addresses.remove((address, protocol))

    def addresses(self):
        return [KernelObject(address, protocol, address.family) for address, protocol in self.held_addresses]

    def links(self):
        return self.links_up

    def sender_identity(self, dev):
        return self.kinds.get(dev, "mac")

    def on_link(self, address, dev=None):
        found = self.near.get(address)
        return found if dev in (None, found) else None

    def source_towards(self, address):
        return self.held_addresses[0][0].address

    def neighbour(self, address, wait=0.0):
        return self.neighbours.get(address)

    def forget_redirects(self):
        self.forgotten += 1


def no_command(argv, stdin=None):
    """A runner on a host without any command."""
    raise MissingCommand(argv[0])


class FakeNft:
    """A runner that supports the nft commands of the engine; iptables is not installed."""

    def __init__(self):
        self.tables: dict[str, list] = {}
        self.missing = False

    def __call__(self, argv, stdin=None):
        if self.missing or argv[0] != "nft":
            raise MissingCommand(argv[0])
        if argv == ["nft", "--version"]:
            return Completed(0, "nftables v1.0.6", "")
        if stdin:
            objects = [item["add"] for item in json.loads(stdin)["nftables"] if "add" in item]
            name = objects[0]["table"]["name"]
            self.tables.pop(name, None)
            if len(objects) > 1:
                self.tables[name] = objects[1:]
            return Completed(0, "", "")
        if argv[3] == "chains":
            chains = [item for objects in self.tables.values() for item in objects if "chain" in item]
            return Completed(0, json.dumps({"nftables": chains}), "")
        if argv[5] not in self.tables:
            return Completed(1, "", "Error: No such file or directory")
        return Completed(0, json.dumps({"nftables": self.tables[argv[5]]}), "")


class FakeDatapath:
    """The table of services in memory."""

    def __init__(self):
        self.live = Live()

    def read(self):
        return self.live

    def write(self, live, table):
        if not transaction(live, table):
            return False
        chains = {name: (chain.hook, tuple(chain.digests)) for name, chain in table.chains.items()}
        self.live = Live(bool(chains), False, frozenset(table.counters), frozenset(table.sets), chains)
        return True


class FakeHost:
    """``engine`` is the engine's Host; the other attributes inspect it. ``no_pyroute2``: pyroute2 is missing."""

    def __init__(self, directory):
        self.kernel, self.nft, self.datapath = FakeKernel(), FakeNft(), FakeDatapath()
        self.no_pyroute2 = False
        self.connections: dict[Any, int | None] = {}
        self.redirects = directory / "proc" / "net" / "ipv4" / "conf" / "all" / "accept_redirects"
        self.flush = directory / "proc" / "net" / "ipv4" / "route" / "flush"
        for file in (self.redirects, self.flush):
            file.parent.mkdir(parents=True)
            file.write_text("1\n")
        self.memory = directory / "sysctl.json"
        self.lock = directory / "lock"
        self.engine = engine.Host(
            runner=self.nft,
            sysctls=sysctl.Sysctls(str(self.memory), str(directory / "proc")),
            make_kernel=self._kernel,
            make_datapath=lambda _runner: self.datapath,
            lock=str(self.lock),
            connections=self,
        )

    def count(self, wanted: frozenset[needs.Need], _own: frozenset[str], _exact: bool) -> dict[needs.Need, int | None]:
        """The number that ``connections`` has for the mark of each need, or for its class."""
        return {need: self.connections.get(getattr(need, "mark", type(need)), 0) for need in wanted}

    @contextmanager
    def _open(self):
        yield self.kernel

    def _kernel(self):
        if self.no_pyroute2:
            raise MissingPackage("python3-pyroute2", "rules and routes need Python's pyroute2")
        return self._open()

    def snapshot(self) -> tuple:
        """The complete state, for comparisons."""
        marks = {name: nft.observe(name[8:], {"nftables": objects}) for name, objects in self.nft.tables.items()}
        rules = sorted(((formatting.describe(rule), protocol) for rule, protocol in self.kernel.held_rules))
        routes = sorted(((formatting.describe(route), protocol) for route, protocol in self.kernel.held_routes))
        addresses = sorted((formatting.describe(address), protocol) for address, protocol in self.kernel.held_addresses)
        memory = self.memory.read_text() if self.memory.exists() else None
        return rules, routes, marks, addresses, self.redirects.read_text().strip(), memory


LOOKUP = {"family": "ipv4", "priority": 1100, "fwmark": 11, "fwmask": 255, "action": "lookup", "table": 20111}
GUARD = {"family": "ipv4", "priority": 1101, "fwmark": 11, "fwmask": 255, "action": "unreachable"}
RETURN_PATH = {
    "schema": 1, "owner": "return_path", "protocol": 202, "rules": [LOOKUP, GUARD],
    "routes": [{"family": "ipv4", "table": 20111, "dst": "default", "via": "198.18.0.11"}],
    "marks": [{"name": "a", "id": 11, "mask": 255, "mac": "02:00:00:00:00:11", "via": ["198.18.0.11"]}],
    "sysctls": [{"name": "net.ipv4.conf.all.accept_redirects", "value": "0"}],
}  # fmt: skip
