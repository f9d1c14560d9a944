# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read the host once and return the ``Facts`` that the checks examine. Nothing is changed, and nothing is locked.

A fact that cannot be read (a command hangs, a file is invalid) becomes an ``Unread``: see ``unread``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...._shared import paths
from ...document import store
from ...document.documents import Document
from ...errors import MissingPackage, NotReady, Refused, RoutingError
from ...host import files, sysctl
from ...host.runner import MissingCommand
from ...reconcile import engine, forwarding, placement, plan
from ...reconcile.host import Host
from . import forwarder, keeper, packet_filters, proc, route_lookups, systemd
from .commands import output_of
from .model import BRIDGED, FORWARDING, TCP_LOOSE, Drift, Facts, conf
from .relay_programs import REMEDIES
from .unread import Reader, Unread

# Sample clients are documentation addresses (RFC 5737, RFC 3849). The handshake probe uses others of these prefixes,
# which end with a proxy id.
CLIENTS = {"ipv4": "198.51.100.254", "ipv6": "2001:db8:ffff::fffe"}
PER_LINK = {
    "ipv4": ("rp_filter", "src_valid_mark", "accept_redirects", "send_redirects", "arp_ignore", "forwarding"),
    "ipv6": ("accept_redirects",),
}
SETTINGS = (*FORWARDING.values(), *BRIDGED.values(), TCP_LOOSE, "net.ipv4.ip_local_port_range")


@dataclass(frozen=True)
class Sources:
    """The paths to read, and access to the host's kernel; tests pass others."""

    host: Host = field(default_factory=Host)
    directory: str = paths.DOCUMENTS
    config: str = paths.CONFIG
    runtime: str = paths.RUNTIME_FILE
    keeper: str = paths.KEEPER_STATE
    proc: str = "/proc"
    systemd: str = "/run/systemd/system"
    networkd: str = "/etc/systemd"


def gather(
    sources: Sources,
    unapplied: Document | None = None,
    clients: Mapping[str, str] | None = None,
    ports: Iterable[tuple[str, int]] = (),
) -> Facts:
    """The facts about the stored documents; or about ``unapplied``, a document that is still to be applied. Then also
    about a stored one of services that the kernel forwards, which explains settings that local delivery does not need.

    ``clients`` is one sample client per family, ``ports`` are the (protocol, port) that this host serves.
    """
    reader = Reader()
    read = reader.read
    stored = read("the directory of documents", store.load_all, sources.directory)
    stored = () if isinstance(stored, Unread) else stored
    documents = tuple(entry.document for entry in stored if entry.document)
    if unapplied:
        others = (one for one in documents if one.services and one.owner != unapplied.owner)
        documents, stored = (unapplied, *others), ()
    config = (sources.config, sources.runtime, sources.proc)
    facts = Facts(
        documents=documents,
        faults=tuple(f"{entry.path}: {error}" for entry in stored for error in entry.errors),
        applied=unapplied is None,
        clients={**CLIENTS, **(clients or {})},
        clients_given=frozenset(clients or {}),
        ports=tuple(sorted(ports)),
        links=read("the list of interfaces", proc.links),
        sockets=read("the list of sockets", proc.sockets, sources.proc),
        relays=read("the processes that listen", proc.relays, sources.proc, REMEDIES),
        arp=read("the table of neighbours", proc.arp, sources.proc),
        conntrack=read("the size of the conntrack table", proc.conntrack, sources.proc),
        forwarder=read("the forwarder's config", forwarder.read, *config) if unapplied is None else None,
        units=read("the list of units", systemd.units, sources.host.runner, sources.systemd),
        contest=read("the keeper's state", keeper.contest, sources.keeper),
        silent=read("the proxies that do not answer", keeper.silent, sources.keeper),
        drop_ins=read("the configuration of systemd-networkd", systemd.drop_ins, sources.networkd),
        redirected=read("the cache of redirects", _redirected, sources),
    )
    facts = replace(facts, settings=read("the kernel's settings", _settings, sources.proc, facts.links))
    facts = replace(facts, only_services=read("the settings of before", _only_services, facts, sources.host))
    facts = replace(facts, bridges=read("the bridges", _bridges, facts))
    facts = replace(facts, **_packet_filters(reader, sources, documents))
    facts = _with_kernel(reader, facts, sources.host)
    facts = replace(facts, backends=read("the backends", route_lookups.backends, facts))
    facts = replace(facts, kernel_targets=read("the kernel services", route_lookups.kernel_targets, facts))
    facts = replace(facts, translated=read("where the packet filters send packets", route_lookups.translated, facts))
    facts = replace(facts, replies=read("the kernel's answers for sample replies", route_lookups.replies, facts))
    if not (unapplied or facts.missing):  # the comparison needs all packages
        facts = replace(facts, drift=read("what differs from the documents", _drifts, sources.host, documents))
    return replace(facts, unread=reader.unread)


def _settings(proc_directory: str, names: Iterable[str]) -> dict[str, str]:
    per_link = [
        conf(family, name, key) for family, keys in PER_LINK.items() for name in ("all", *names) for key in keys
    ]
    root = os.path.join(proc_directory, "sys")
    values = {name: files.read(sysctl.file_of(name, root)) for name in (*SETTINGS, *per_link)}
    return {name: value.strip() for name, value in values.items() if value is not None}


def _only_services(facts: Facts, host: Host) -> frozenset[str]:
    return frozenset().union(*(forwarding.strangers(document, host.sysctls) for document in facts.kernel_datapath))


def _bridges(facts: Facts) -> tuple[str, ...]:
    passed = facts.only_services and any(facts.setting(name) for name in BRIDGED.values())
    return tuple(filter(route_lookups.is_bridge, facts.links)) if passed else ()


def _with_kernel(reader: Reader, facts: Facts, host: Host) -> Facts:
    """Rules, routes, addresses and neighbours; without pyroute2 only the results of route lookups."""
    fields = reader.read("the kernel's routing tables", _listed, reader, facts, host)
    if isinstance(fields, Unread):
        fields = dict.fromkeys(("rules", "routes", "addresses", "own", "peers"), fields)
    return replace(facts, **fields)


def _listed(reader: Reader, facts: Facts, host: Host) -> dict[str, Any]:
    try:
        with host.make_kernel() as kernel:
            return _lists(reader, facts, kernel, host.neighbour_wait if facts.applied else 0)
    except MissingPackage as missing:
        effect = "rules, routes and neighbours cannot be checked"
        return {
            "missing": {**facts.missing, missing.package: effect},
            "own": route_lookups.own_sources(facts.documents),
            "peers": reader.read("the proxies", route_lookups.peers, facts, None, 0),
        }


def _lists(reader: Reader, facts: Facts, kernel: Any, wait: float) -> dict[str, Any]:
    addresses = reader.read("the list of addresses", lambda: tuple(kernel.addresses()))
    return {
        "rules": reader.read("the list of rules", lambda: tuple(kernel.rules())),
        "routes": reader.read("the list of routes", lambda: tuple(kernel.routes())),
        "addresses": addresses,
        "own": reader.read("this host's addresses", lambda: frozenset(found.value.address for found in addresses)),
        "peers": reader.read("the proxies", route_lookups.peers, facts, kernel, wait),
    }


def _redirected(sources: Sources) -> dict[str, str] | None:
    """The gateways learned from redirects, by destination; None without iproute2.

    It prints ``redirected`` for IPv4, ``redirect`` for IPv6.
    """
    gateways: dict[str, str] = {}
    has_ipv6 = os.path.isdir(os.path.join(sources.proc, "sys/net/ipv6"))
    for command in ("-4", "-6") if has_ipv6 else ("-4",):
        try:
            routes = output_of(sources.host.runner, ["ip", "-j", command, "route", "show", "cache", "table", "all"])
        except MissingCommand:
            return None
        for route in json.loads(routes or "[]"):
            if "redirected" in route.get("cache", []) or route.get("protocol") == "redirect":
                gateways[route["dst"]] = route.get("gateway", "a direct neighbour")
    return gateways


def _packet_filters(reader: Reader, sources: Sources, documents: tuple[Document, ...]) -> dict[str, Any]:
    fields = reader.read("the packet filters", packet_filters.read, sources.host.runner, sources.proc, documents)
    return {"ruleset": fields, "restores_forwarded": fields} if isinstance(fields, Unread) else fields


def _drifts(host: Host, documents: tuple[Document, ...]) -> tuple[Drift, ...]:
    return tuple(_drift(host, document) for document in documents)


def _drift(host: Host, document: Document) -> Drift:
    try:
        run = engine.compare(document, host)
    except (NotReady, Refused) as error:
        return Drift(document.owner, blocked=tuple(error.errors))
    except (RoutingError, OSError) as error:
        return Drift(document.owner, blocked=(str(error),))
    # The check rule_before reports where our rules stand among foreign ones.
    want, have = (
        replace(state, rules=placement.as_documented(document.rules, state.rules)) for state in (run.want, run.have)
    )
    return Drift(document.owner, plan.find_changes(want, have), run.waiting)
