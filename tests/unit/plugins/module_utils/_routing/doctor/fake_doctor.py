# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fake host for the doctor: the engine's fake host, plus route lookups and commands that list."""

from __future__ import annotations

import json
from dataclasses import replace

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts import gather, route_lookups
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.runner import Completed, MissingCommand
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.route_query import RouteAnswer
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import engine

from .. import fakes
from . import cases

NEIGHBOUR = RouteAnswer("unicast", dev="eth0", src=cases.B, table=254)


def raising(error: Exception):
    def call(*_arguments, **_options):
        raise error

    return call


class FakeDoctor:
    """``sources`` is for gather(). ``outputs`` has what commands print or raise, by their first words."""

    def __init__(self, directory, monkeypatch):
        self.host = fakes.FakeHost(directory)
        self.host.kernel.neighbours[cases.A] = cases.PEER.mac
        self.stored = directory / "routing.d"
        self.outputs = {"nft -j list ruleset": '{"nftables": []}', "ip -j -4": "", "ip -j -6": ""}
        self.asked: list[tuple] = []
        self.marked = cases.BY_PROXY
        monkeypatch.setattr(route_lookups, "ask", self._route)
        host = replace(self.host.engine, runner=self._run)
        names = ("config", "runtime", "keeper", "proc", "systemd", "networkd")
        none = {name: str(directory / "none") for name in names}
        self.sources = gather.Sources(host=host, directory=str(self.stored), **none)

    def apply(self) -> None:
        """Apply a backend's document: to the fake kernel and the store."""
        document, options = documents.load(fakes.RETURN_PATH), engine.Options(directory=str(self.stored))
        engine.reconcile(document, self.host.engine, options)

    def _run(self, argv, stdin=None):
        line = " ".join(argv)
        for words, output in self.outputs.items():
            if line.startswith(words):
                if output is None:
                    raise MissingCommand(argv[0])
                if isinstance(output, Exception):
                    raising(output)()
                return output if isinstance(output, Completed) else Completed(0, output, "")
        if argv[0] != "nft":
            raise MissingCommand(argv[0])
        return self.host.nft(argv, stdin)

    def _route(self, dst, **selectors):
        self.asked.append((dst, selectors))
        if dst == cases.A:
            return NEIGHBOUR
        if dst == cases.B:
            return cases.LOCAL
        return self.marked if selectors.get("mark") else cases.BY_ROUTER

    def redirect(self, target: str) -> None:
        """Add a learned redirect to the output of ``ip -j route show cache``."""
        route = {"dst": target, "gateway": cases.ROUTER, "dev": "eth0", "table": "20111", "cache": ["redirected"]}
        self.outputs["ip -j -4"] = json.dumps([route])
