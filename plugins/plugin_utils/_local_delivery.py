# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Local delivery: what makes a proxy accept its backends' replies to addresses it does not own. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._derivation import (
    collect,
    conf_sysctls,
    proxy_id,
    state_document,
)
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import DerivationError
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._marks_and_tables import (
    FAMILY,
    PROTOCOL_LOCAL_DELIVERY,
    Numbers,
)

RULES, SOCKET_MARK, AUTO = "rules", "socket_mark", "auto"
METHODS = (RULES, SOCKET_MARK, AUTO)
VARIABLE = "forwarder_local_delivery"

# A bare `from BACKEND` would make the proxy answer ARP for the whole subnet; a port would leave out ICMP errors.
IP_PROTOCOLS = {4: ("tcp", "udp", "icmp"), 6: ("tcp", "udp", "ipv6-icmp")}

FORWARDING = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
SRC_VALID_MARK = ".src_valid_mark"

# IP version, the backend's address, and the proxy's interface towards it (None where it is not known).
Source = tuple[int, str, "str | None"]


def local_delivery(fleet: Fleet, proxy: str, method: str = AUTO, mark_engine: str = "auto") -> dict[str, Any]:
    """Derive the state document of local delivery.

    :param method: ``rules`` by the backends' addresses, ``socket_mark`` by the forwarder's sockets, or ``auto``.
    :param mark_engine: what makes the mark of ``socket_mark``.
    """
    errors: list[str] = []
    sources = _sources(fleet, proxy, errors)
    devices = {device for _version, _address, device in sources if device}
    numbers = collect(errors, fleet.numbers, proxy)
    settings = _of_devices(fleet.settings, devices)
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
    # A proxy that forwards one packet of a backend would tell it to use the router from then on.
    sections["sysctls"] = conf_sysctls(4, devices, "send_redirects")
    return state_document("local_delivery", PROTOCOL_LOCAL_DELIVERY, sections, mark_engine)


def _sources(fleet: Fleet, proxy: str, errors: list[str]) -> list[Source]:
    found: set[Source] = set()
    for service in fleet.services_of_proxy(proxy):
        for ref in service.backends:
            meetings = collect(errors, fleet.meetings_of, proxy, ref) or {}
            for version, address in (collect(errors, fleet.backend_addresses, proxy, ref) or {}).items():
                device = meetings[version].proxy.device if version in meetings else None
                found.add((version, address, device))
    return sorted(found, key=lambda one: (one[0], one[1], one[2] or ""))


def _of_devices(settings: Mapping[str, str], devices: Iterable[str]) -> dict[str, str]:
    """Return the settings without ``src_valid_mark`` of other interfaces; that of ``all`` counts on each."""
    counting = {f"net.ipv4.conf.{device}{SRC_VALID_MARK}" for device in ("all", *devices)}
    return {name: value for name, value in settings.items() if not name.endswith(SRC_VALID_MARK) or name in counting}


def _by_rules(numbers: Numbers, sources: list[Source]) -> dict[str, Any]:
    """Return rules by which what comes in from a backend is for this host.

    Only what comes in, by the interface: what this host sends itself with a backend's address as the source, because
    the client is one, has to go out to another backend.
    """
    rules = [
        {"family": FAMILY[version], "priority": numbers.priority, "src": address, **({"iif": device} if device else {}),
         "ip_proto": protocol, "action": "lookup", "table": numbers.table_local_delivery}
        for version, address, device in sources
        for protocol in IP_PROTOCOLS[version]
    ]  # fmt: skip
    return {"rules": rules}


def _by_socket(numbers: Numbers, proxy: str, number: int, versions: list[int]) -> dict[str, Any]:
    """Return a mark for what has a transparent socket here, and rules by which it is for this host.

    The mark is the proxy's own id, which cannot be that of another: a proxy is no backend of itself.
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
    """Return how the replies are told: by rules, or by the socket they have.

    ``auto`` keeps what an earlier run has applied. Rules would swallow what a proxy routes for its backends, so on a
    router it takes the socket, unless marks count in source validation there.

    :param known: the document of an earlier run.
    :param settings: sysctls of the proxy, by name, those of interfaces as :func:`_of_devices` leaves them.
    :param hosted: whether a backend is a container of the proxy: then rules cannot stay once it is a router.
    :raises DerivationError: an unknown method, or one that cannot work there.
    """
    if wanted not in METHODS:
        raise DerivationError([f"{VARIABLE} of {proxy}: {wanted!r} is not known here; use {', '.join(METHODS)}"])
    validating = sorted(name for name, value in settings.items() if name.endswith(SRC_VALID_MARK) and value != "0")
    chosen = wanted
    if wanted == AUTO:
        routes = any(settings.get(name, "0") != "0" for name in FORWARDING)
        best = SOCKET_MARK if routes and not validating else RULES
        chosen = best if hosted and best == SOCKET_MARK else applied(known) or best
    if chosen == SOCKET_MARK and validating:
        raise DerivationError(
            [
                f"{VARIABLE} of {proxy}: socket_mark cannot work while {validating[0]} is {settings[validating[0]]}, "
                "because the mark then counts when the kernel validates the sender and every reply is dropped in "
                f"silence; set it to 0 there (a VPN may have set it), or set {VARIABLE}: {RULES}"
            ]
        )
    return chosen


def applied(document: Mapping[str, Any] | None) -> str | None:
    """Tell the method of a local delivery document; None where there is none. What is retiring does not count."""
    sections = document or {}
    if any(mark.get("transparent") and not mark.get("retiring") for mark in sections.get("marks") or ()):
        return SOCKET_MARK
    return RULES if any(not rule.get("retiring") for rule in sections.get("rules") or ()) else None
