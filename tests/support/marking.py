# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Marks on a host of the lab, in nftables, iptables-nft or iptables-legacy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import OWNERS, Mark, Observed
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host import runner
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.marks import selection
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import engine

from tests.support import routing
from tests.support.addresses import address_of
from tests.support.routing import PORT, attempt


@dataclass(frozen=True)
class Variant:
    """A mark engine with its commands: Debian has two iptables, and /etc/alternatives selects one."""

    engine: str
    flavour: str = ""

    def __str__(self) -> str:
        return self.flavour or self.engine

    def command(self, name: str) -> str:
        """``iptables-save`` → ``iptables-legacy-save``"""
        program, dash, rest = name.partition("-")
        if not self.flavour or program not in ("iptables", "ip6tables"):
            return name
        return f"{program}-{self.flavour.partition('-')[2]}{dash}{rest}"

    def run(self, argv, stdin=None) -> runner.Completed:
        return runner.run([self.command(argv[0]), *argv[1:]], stdin)

    def save(self, host, command: str = "iptables") -> list[str]:
        """Our rules in table mangle, and the jumps to them."""
        listed = host.run([self.command(f"{command}-save"), "-t", "mangle"]).stdout.splitlines()
        return [line for line in listed if "L4PROXY_" in line]


NFT = Variant("nftables")
VARIANTS = (NFT, Variant("iptables", "iptables-nft"), Variant("iptables", "iptables-legacy"))


@dataclass
class Marked:
    """A host that uses one variant for its marks."""

    lab: object
    host: object
    variant: Variant

    def apply(self, data: dict, **arguments) -> engine.Outcome:
        data = {"mark_engine": self.variant.engine, **data}
        return self.lab.engine.apply(self.host, data, {"runner": self.variant.run}, **arguments)

    def remove(self, owner: str) -> None:
        if owner not in OWNERS:
            self.write((), owner)
            return
        with self.host.inside():
            engine.remove(owner, self.lab.engine.host(self.host, runner=self.variant.run))

    def read(self, owner: str = "return_path") -> Observed:
        with self.host.inside():
            return selection.read(self.variant.run, owner)

    def write(self, values: tuple[Mark, ...], owner: str = "return_path") -> None:
        with self.host.inside():
            selection.write(self.variant.run, owner, self.variant.engine, values)

    def run(self, command: str) -> str:
        """Run a command; ``iptables`` is the variant's."""
        program, *rest = command.split()
        return self.host.run([self.variant.command(program), *rest]).stdout

    def listing(self) -> list[str]:
        """The host's listing with iptables-legacy, which ``routing.listing`` does not see."""
        saved = [self.host.run([self.variant.command(f"{name}-save")]).stdout for name in ("iptables", "ip6tables")]
        return [
            *routing.listing(self.host),
            *(line for text in saved for line in text.splitlines() if line.startswith("-")),
        ]


@contextlib.contextmanager
def marked(lab, name: str, variant: Variant, owners: tuple[str, ...] = ("return_path",)) -> Iterator[Marked]:
    """A host that uses one variant; the objects of the owners are removed in the end."""
    marked_host = Marked(lab, lab[name], variant)
    try:
        yield marked_host
    finally:
        for owner in owners:
            marked_host.remove(owner)
        assert marked_host.read().marks == ()
        assert variant.save(lab[name]) == variant.save(lab[name], "ip6tables") == []


def outcomes(lab, host: str, sources: dict[str, str], port: int = PORT, source_port: int = 0) -> list[str]:
    """The outcomes of handshakes with b, one in each family, in parallel because silence takes a second."""
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(attempt(lab[host], source, address_of(lab["b"], family), port, source_port))
            for family, source in sources.items()
        ]
        return [connection.outcome() for connection in connections]
