# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The nft table of services on this host: which services it has, whether it is as it should be, and writing it.

The table does not say all about a service, so it is compared with what documents render to. Which backends get new
connections depends on their states, which change all the time: a table that differs in that only is sound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..datapath import banned, render
from ..datapath.model import Live, Table, transaction
from ..document.documents import Document
from ..document.kernel_service import KernelService
from ..document.service_schema import OWNER
from ..errors import MissingPackage
from ..host.runner import MissingCommand
from . import forwarding
from .host import Host

CONNTRACK_MAX = "net.netfilter.nf_conntrack_max"
MASK = 0xFF
# The chains that depend on the states of backends.
OF_STATES = ("buckets_", "sockets_")
# Chains, sets and counters that depend on who is banned.
OF_BANS = ("banned", "denied_")


@dataclass(frozen=True)
class Observed:
    """The services that the live table has. ``sound``: it is what these render to; ``current``: with these states."""

    services: tuple[KernelService, ...] = ()
    sound: bool = True
    current: bool = True


def read(host: Host, documents: Sequence[Document]) -> Observed:
    """Compare the live table with documents: the desired one first, then those that may have been applied before.

    MissingPackage if the table must be written and nft is missing.
    """
    if not documents or documents[0].owner != OWNER:
        return Observed()
    live = host.make_datapath(host.runner).read()
    observed = _observe(host, live, documents)
    if not observed.sound or set(documents[0].services) != set(observed.services):
        _need_nft(host)
    return observed


def _observe(host: Host, live: Live, documents: Sequence[Document]) -> Observed:
    if not live.exists:
        return Observed()
    known = [document for document in documents if document.services]
    present = [replace(document, services=_present(live, document.services)) for document in known]
    for document in (*known, *present):
        wanted = table(host, document)
        if document.services and _is_sound(live, wanted):
            return Observed(document.services, current=not transaction(live, wanted))
    # The services as they were applied last.
    some = {service.key: service for document in present for service in document.services}
    return Observed(tuple(some.values()), sound=False)


def _present(live: Live, services: Sequence[KernelService]) -> tuple[KernelService, ...]:
    """The services of which the live table counts the packets to a backend."""
    names = {
        service: {render.counter_name("in", service, server) for server in service.servers} for service in services
    }
    return tuple(service for service in services if names[service] & live.counters)


def _is_sound(live: Live, wanted: Table) -> bool:
    """Whether only states may differ. Chains that depend on them have one rule, whatever it is."""
    of_states = [name for name in wanted.chains if name.startswith(OF_STATES)]
    if any(len(live.chains.get(name, (None, ()))[1]) != 1 for name in of_states):
        return False
    others = (*OF_STATES, *OF_BANS)
    present = {name: chain for name, chain in live.chains.items() if not name.startswith(others)}
    chains = {name: chain for name, chain in wanted.chains.items() if not name.startswith(others)}
    wanted = replace(
        wanted,
        chains=chains,
        sets={name: one for name, one in wanted.sets.items() if not name.startswith(OF_BANS)},
        counters={name for name in wanted.counters if not name.startswith(OF_BANS)},
    )
    counters = frozenset(name for name in live.counters if not name.startswith(OF_BANS))
    sets = frozenset(name for name in live.sets if not name.startswith(OF_BANS))
    return not transaction(replace(live, chains=present, counters=counters, sets=sets), wanted)


def _need_nft(host: Host) -> None:
    try:
        host.runner(["nft", "--version"], None)
    except MissingCommand as error:
        raise MissingPackage("nftables", "services that the kernel forwards need the command nft") from error


def table(host: Host, document: Document) -> Table:
    """The table for the services of a document, with the present states of their backends."""
    if not document.services:
        return Table()
    mark = document.bypass or MASK
    entries = host.sysctls.value(CONNTRACK_MAX)
    found = render.render(
        document.services,
        host.backend_states(),
        forwarding.strangers(document, host.sysctls),
        mark,
        mark,
        int(entries) if entries else render.DEFAULT_ENTRIES,
    )
    return banned.add(found, document.services, host.bans().lists)


def write(host: Host, document: Document) -> None:
    """Make the live table that of a document."""
    datapath = host.make_datapath(host.runner)
    if datapath.write(datapath.read(), table(host, document)):
        # The first table loads conntrack, whose size it depends on.
        datapath.write(datapath.read(), table(host, document))
