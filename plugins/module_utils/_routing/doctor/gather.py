# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look at the host once and make the ``Facts`` that the checks go by. Nothing is changed, and nothing is locked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from .. import files, iptables, nft, plan, store, sysctl
from .. import gather as engine_gather
from ..document import Document
from ..errors import MissingPackage, NotReady, Refused, RoutingError
from ..gather import Host
from ..runner import MissingCommand
from . import forwarder, iptables_rules, nft_rules, paths, proc, services
from .facts import Drift, Facts, conf
from .firewall import Ruleset

# Sample clients: documentation addresses (RFC 5737, RFC 3849) beside the handshake probe's, which end with a proxy id.
CLIENTS = {"ipv4": "198.51.100.254", "ipv6": "2001:db8:ffff::fffe"}
PER_LINK = {
    "ipv4": ("rp_filter", "src_valid_mark", "accept_redirects", "send_redirects", "arp_ignore", "forwarding"),
    "ipv6": ("accept_redirects",),
}
SETTINGS = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.ip_local_port_range")


@dataclass(frozen=True)
class Sources:
    """Where to look; a test names other places."""

    host: Host = field(default_factory=Host)
    directory: str = store.DIRECTORY
    config: str = "/etc/l4proxy/forwarder.json"
    runtime: str = "/run/l4proxy/forwarder.json"
    keeper: str = "/run/l4proxy-keeper/state.json"
    proc: str = "/proc"
    systemd: str = "/run/systemd/system"
    networkd: str = "/etc/systemd"


def look(
    sources: Sources,
    wanted: Document | None = None,
    clients: Mapping[str, str] | None = None,
    ports: Iterable[tuple[str, int]] = (),
) -> Facts:
    """The facts about the stored documents; or about ``wanted``, a document that is still to be applied.

    ``clients`` is a sample client a family, ``ports`` are (protocol, port) that this host serves.
    """
    stored = store.load_all(sources.directory) if wanted is None else []
    documents = (wanted,) if wanted else tuple(one.document for one in stored if one.document)
    facts = Facts(
        documents=documents,
        faults=tuple(f"{one.path}: {error}" for one in stored for error in one.errors),
        applied=wanted is None,
        clients={**CLIENTS, **(clients or {})},
        clients_given=frozenset(clients or {}),
        ports=tuple(sorted(ports)),
        links=proc.links(),
        sockets=proc.sockets(sources.proc),
        conntrack=proc.conntrack(sources.proc),
        forwarder=forwarder.read(sources.config, sources.runtime, sources.proc) if wanted is None else None,
        units=services.units(sources.host.runner, sources.systemd),
        contest=services.contest(sources.keeper),
        drop_ins=services.drop_ins(sources.networkd),
        redirected=_redirected(sources.host),
    )
    facts = replace(facts, settings=_settings(sources.proc, facts.links), **_ruleset(sources, documents))
    facts = _with_kernel(facts, sources.host)
    facts = replace(facts, backends=paths.backends(facts))
    facts = replace(facts, replies=paths.replies(facts))
    if wanted or facts.missing:
        return facts  # without its packages nothing can be said of an applied document either
    return replace(facts, drift=tuple(_drift(sources.host, one) for one in documents))


def _settings(proc_directory: str, names: Iterable[str]) -> dict[str, str]:
    per_link = [
        conf(family, name, key) for family, keys in PER_LINK.items() for name in ("all", *names) for key in keys
    ]
    root = os.path.join(proc_directory, "sys")
    found = {name: files.read(sysctl.file_of(name, root)) for name in (*SETTINGS, *per_link)}
    return {name: value.strip() for name, value in found.items() if value is not None}


def _with_kernel(facts: Facts, host: Host) -> Facts:
    """Rules, routes, addresses and neighbours; without pyroute2 what the kernel answers to single questions."""
    try:
        with host.make_kernel() as kernel:
            return replace(
                facts,
                rules=tuple(kernel.rules()),
                routes=tuple(kernel.routes()),
                addresses=tuple(kernel.addresses()),
                own=frozenset(found.value.address for found in kernel.addresses()),
                peers=paths.peers(facts, kernel, host.neighbour_wait if facts.applied else 0),
            )
    except MissingPackage as missing:
        lost = "rules, routes and neighbours cannot be looked at"
        return replace(
            facts,
            missing={**facts.missing, missing.package: lost},
            own=paths.own_sources(facts.documents),
            peers=paths.peers(facts, None, 0),
        )


def _redirected(host: Host) -> dict[str, str] | None:
    """What redirects have taught, by destination. iproute2 says ``redirected`` for IPv4, ``redirect`` for IPv6."""
    found: dict[str, str] = {}
    for command in ("-4", "-6"):
        try:
            done = host.runner(["ip", "-j", command, "route", "show", "cache", "table", "all"], None)
        except MissingCommand:
            return None
        for route in json.loads(done.stdout) if done.code == 0 and done.stdout.strip() else []:
            if "redirected" in route.get("cache", []) or route.get("protocol") == "redirect":
                found[route["dst"]] = route.get("gateway", "a direct neighbour")
    return found


def _ruleset(sources: Sources, documents: tuple[Document, ...]) -> dict[str, Any]:
    """The packet filters, our own marks left out, and whether those restore the marks of forwarded packets."""
    listing = _nft_listing(sources.host)
    tables = {nft.table_name(one.owner) for one in documents}
    prefixes = tuple(iptables.prefix(one.owner) for one in documents)
    chains = dict(nft_rules.parse(listing, tables).chains) if listing is not None else {}
    saved = _saved(sources, listing is None or nft_rules.uses_iptables(listing))
    for family, text in saved:
        chains.update(iptables_rules.parse(text, family, prefixes))
    restored = [f"{prefix}PRE" in text for prefix in prefixes for _family, text in saved]
    hooks = nft_rules.hooks(listing or {}, tables)
    found: dict[str, Any] = {"restores_forwarded": "prerouting" in hooks or any(restored)}
    if listing is None and not saved:
        marked = any(one.marks for one in documents)
        return {**found, "missing": {"nftables": "marks cannot be set or looked at"} if marked else {}}
    return {**found, "ruleset": Ruleset(chains)}


def _nft_listing(host: Host) -> dict[str, Any] | None:
    """None without nft."""
    try:
        done = host.runner(["nft", "-j", "list", "ruleset"], None)
    except MissingCommand:
        return None
    return json.loads(done.stdout) if done.code == 0 and done.stdout.strip() else {}


def _saved(sources: Sources, by_nft: bool) -> list[tuple[str, str]]:
    """What iptables-save says of each family; asked only where there can be rules, because asking loads modules."""
    commands = [("iptables-save", "ipv4"), ("ip6tables-save", "ipv6")] if by_nft else []
    for command, family, name in (("iptables", "ipv4", "ip_tables"), ("ip6tables", "ipv6", "ip6_tables")):
        if (files.read(proc.net(sources.proc, f"{name}_names")) or "").strip():
            commands.append((f"{command}-legacy-save", family))
    found = []
    for command, family in commands:
        with suppress(MissingCommand):
            found.append((family, sources.host.runner([command], None).stdout))
    return found


def _drift(host: Host, document: Document) -> Drift:
    try:
        view = engine_gather.view(host, document)
    except (NotReady, Refused) as error:
        return Drift(document.owner, blocked=tuple(error.errors))
    except (RoutingError, OSError) as error:
        return Drift(document.owner, blocked=(str(error),))
    return Drift(document.owner, plan.plan(view.want, view.have), tuple(view.waiting))
