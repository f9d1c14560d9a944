# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state document of local delivery: a proxy accepts its backends' replies to addresses it does not own. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.service_schema import (
    OWNER as KERNEL_DATAPATH,
)
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._datapath import Datapaths
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError, collect
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._marks_and_tables import (
    FAMILY,
    PROTOCOL_LOCAL_DELIVERY,
    Numbers,
)
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._proxy_ids import proxy_id
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._reachability import backend_addresses, subnets_of_backend
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._state_document import conf_sysctls, state_document

RULES, SOCKET_MARK, AUTO = "rules", "socket_mark", "auto"
METHODS = (RULES, SOCKET_MARK, AUTO)
VARIABLE = "forwarder_local_delivery"

# A rule `from BACKEND` without protocol would make the proxy answer ARP for the whole subnet; one with a port would not
# match ICMP errors.
IP_PROTOCOLS = {4: ("tcp", "udp", "icmp"), 6: ("tcp", "udp", "ipv6-icmp")}

FORWARDING = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
SRC_VALID_MARK = ".src_valid_mark"

# IP version, the backend's address, and the proxy's interface towards it (None: not known).
Source = tuple[int, str, "str | None"]


def local_delivery(fleet: Fleet, proxy: str, method: str = AUTO, mark_engine: str = "auto") -> dict[str, Any]:
    """Derive the state document of local delivery.

    :param method: ``rules`` (match the backends' addresses), ``socket_mark`` (match the forwarder's sockets), ``auto``.
    :param mark_engine: what makes the mark of ``socket_mark``.
    :raises DerivationError: with every fault.
    """
    errors: list[str] = []
    sources = _sources(fleet, proxy, errors)
    devices = {device for _version, _address, device in sources if device}
    numbers = collect(errors, fleet.numbers, proxy)
    settings = _relevant_settings(fleet.settings, devices)
    hosted = bool(devices & fleet.bridges(proxy))
    chosen = collect(errors, choose, proxy, method, fleet.known.get("local_delivery"), settings, hosted)
    if errors:
        raise DerivationError(errors)
    versions = sorted({version for version, _address, _device in sources})
    if chosen == RULES:
        sections = _by_rules(numbers, sources)
    else:
        sections = _by_socket(numbers, proxy, proxy_id(fleet, proxy), versions)
    sections["routes"] = [
        {
            "family": FAMILY[version],
            "table": numbers.table_local_delivery,
            "dst": "default",
            "type": "local",
            "dev": "lo",
        }
        for version in versions
    ]
    # A proxy that routes one packet of a backend would redirect it to the router from then on.
    sections["sysctls"] = conf_sysctls(4, devices, "send_redirects")
    if chosen == RULES and _forwards(fleet, proxy):
        # The source of a client's packet to a backend is validated by the route of the reply, which a rule would take
        # to this host. The mark of the kernel datapath makes it take the route of the packet that really comes.
        sections["sysctls"] += conf_sysctls(4, (), SRC_VALID_MARK[1:], "1")
    return state_document("local_delivery", PROTOCOL_LOCAL_DELIVERY, sections, mark_engine)


def _forwards(fleet: Fleet, proxy: str) -> bool:
    """Return whether the proxy's kernel forwards a service, or has connections of one that it has forwarded."""
    datapaths = Datapaths(fleet)
    stored = fleet.known.get(KERNEL_DATAPATH) or {}
    return bool(stored.get("services")) or any(map(datapaths.in_kernel, fleet.services_of_proxy(proxy)))


def _sources(fleet: Fleet, proxy: str, errors: list[str]) -> list[Source]:
    sources: set[Source] = set()
    for service in fleet.services_of_proxy(proxy):
        for ref in service.backends:
            subnets = collect(errors, subnets_of_backend, fleet, proxy, ref) or {}
            for version, address in (collect(errors, backend_addresses, fleet, proxy, ref) or {}).items():
                device = subnets[version].proxy.device if version in subnets else None
                sources.add((version, address, device))
    return sorted(sources, key=lambda one: (one[0], one[1], one[2] or ""))


def _relevant_settings(settings: Mapping[str, str], devices: Iterable[str]) -> dict[str, str]:
    """Return the settings without ``src_valid_mark`` of other interfaces; that of ``all`` applies to each."""
    applying = {f"net.ipv4.conf.{device}{SRC_VALID_MARK}" for device in ("all", *devices)}
    return {name: value for name, value in settings.items() if not name.endswith(SRC_VALID_MARK) or name in applying}


def _by_rules(numbers: Numbers, sources: list[Source]) -> dict[str, Any]:
    """Return rules that deliver packets from a backend to this host.

    They match the interface, so only packets that come in: this host itself sends from a backend's address when that
    backend is the client of another one.
    """
    rules = [
        {"family": FAMILY[version], "priority": numbers.priority, "src": address, **({"iif": device} if device else {}),
         "ip_proto": protocol, "action": "lookup", "table": numbers.table_local_delivery}
        for version, address, device in sources
        for protocol in IP_PROTOCOLS[version]
    ]  # fmt: skip
    return {"rules": rules}


def _by_socket(numbers: Numbers, proxy: str, number: int, versions: list[int]) -> dict[str, Any]:
    """Return a mark for packets that have a transparent socket here, and rules that deliver them to this host.

    The mark is the proxy's own id. No return path on this host uses it: a proxy is not its own backend.
    """
    value, mask = numbers.mark(proxy, number), numbers.mark_mask
    rules = [
        {"family": FAMILY[version], "priority": numbers.priority, "fwmark": value, "fwmask": mask,
         "action": "lookup", "table": numbers.table_local_delivery}
        for version in versions
    ]  # fmt: skip
    return {"rules": rules, "marks": [{"name": proxy, "id": value, "mask": mask, "transparent": True}]}


def choose(
    proxy: str, wanted: str, known: Mapping[str, Any] | None, settings: Mapping[str, str], hosted: bool = False
) -> str:
    """Return the method that recognizes replies: rules, or the socket they belong to.

    ``auto`` keeps what an earlier run has applied. Rules would also catch packets that a proxy routes for its backends,
    so a router gets the socket mark, unless it uses marks in source validation.

    :param known: the document of an earlier run.
    :param settings: sysctls of the proxy by name, as :func:`_relevant_settings` returns them.
    :param hosted: whether a backend is a container of the proxy; rules then cannot stay once it is a router.
    :raises DerivationError: an unknown method, or one that cannot work there.
    """
    if wanted not in METHODS:
        raise DerivationError(
            [f"{VARIABLE} of {proxy}: {wanted!r} is not a method of this version; use {', '.join(METHODS)}"]
        )
    validating = sorted(name for name, value in settings.items() if name.endswith(SRC_VALID_MARK) and value != "0")
    chosen = wanted
    if wanted == AUTO:
        routes = any(settings.get(name, "0") != "0" for name in FORWARDING)
        best = SOCKET_MARK if routes and not validating else RULES
        chosen = best if hosted and best == SOCKET_MARK else applied_method(known) or best
    if chosen == SOCKET_MARK and validating:
        name = validating[0]
        reason = (
            "the kernel would use the mark to validate the source, and silently drop every reply; set it to 0 (a "
            f"VPN may have set it), or set {VARIABLE}: {RULES}"
        )
        if any(sysctl["name"] == name for sysctl in (known or {}).get("sysctls") or ()):
            reason = (
                "this collection has set it, because method rules needs it beside services with datapath: kernel; keep "
                f"{VARIABLE}: {RULES}, or first run site with datapath: forwarder for its services, until none of "
                "their connections is left in the kernel"
            )
        raise DerivationError(
            [f"{VARIABLE} of {proxy}: socket_mark cannot work while {name} is {settings[name]}: {reason}"]
        )
    return chosen


def applied_method(document: Mapping[str, Any] | None) -> str | None:
    """Return the method that a local delivery document applies, or None; retiring objects do not count."""
    sections = document or {}
    if any(mark.get("transparent") and not mark.get("retiring") for mark in sections.get("marks") or ()):
        return SOCKET_MARK
    return RULES if any(not rule.get("retiring") for rule in sections.get("rules") or ()) else None
