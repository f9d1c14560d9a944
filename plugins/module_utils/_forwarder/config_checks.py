# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong between the values of a config, each of which is right by itself; config.py calls these.

Each function records what it refuses in the validation.Fields it is given, at the place that has to change. What was
refused already is None, "" or 0 by then, and not refused again.
"""

from __future__ import annotations

import ipaddress

from .validation import IPV4, IPV6

_SPELLED = {IPV4: "IPv4", IPV6: "IPv6"}


def refuse_unusable(part, key, address, verb):
    """Refuse addresses no server can have, and those that need more than an address to be reached."""
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped:
        part.error(key, f"{address} is IPv4 in IPv6 clothes: give {mapped}")
        return
    checks = (
        (address.is_unspecified, "the unspecified address"),
        (address.is_multicast, "a multicast address"),
        (address.is_link_local, "a link-local address"),
        (address == ipaddress.IPv4Address("255.255.255.255"), "the broadcast address"),
    )
    for wrong, what in checks:
        if wrong:
            part.error(key, f"{address} is {what}; no service can {verb} it")


def refuse_twin_backends(parts, backends):
    """Refuse two backends of one name, or of one address and port, in a service: weight says the same more clearly."""
    for index, backend in enumerate(backends):
        for other in range(index):
            earlier = backends[other]
            if backend.name is not None and backend.name == earlier.name:
                parts[index].error("name", f'"{backend.name}" is already the name of backends[{other}] of this service')
            for family in (IPV4, IPV6):
                address = backend.address(family)
                if address and (address, backend.port) == (earlier.address(family), earlier.port):
                    parts[index].error(
                        family,
                        f"{address} port {backend.port} is already backends[{other}] of this service; use weight",
                    )


def refuse_uneven_ranges(parts, service, entries):
    """A backend with a range of ports needs one for each port of every listen entry."""
    lengths = sorted({len(entry) for entry in entries})
    for part, backend in zip(parts, service.backends):
        if backend.last_port and lengths != [backend.last_port - backend.port + 1]:
            part.error(
                "port",
                f"{backend.port}-{backend.last_port} is {backend.last_port - backend.port + 1} ports, and the listen"
                f" addresses of this service have {' and '.join(map(str, lengths))}; give as many, or one port for all",
            )


def refuse_family_without_backend(parts, service, entries):
    """A client of one family is forwarded to that family, unless it may be hidden behind the proxy's own address."""
    if not service.backends or service.source_fallback == "own":
        return  # the former was said already
    for part, entry in zip(parts, entries):
        listener = entry[0]
        if listener.address and not service.backends_of(listener.family):
            part.error(
                "address",
                f"{listener.address} is {_SPELLED[listener.family]}, but no backend of service"
                f" {service.name} has {listener.family}; give one, remove this listener, or set source_fallback: own"
                " (the backends then see the proxy's address)",
            )


def refuse_duplicate_names(parts, services):
    first = {}
    for index, service in enumerate(services):
        if service.name is None:
            continue
        if service.name in first:
            parts[index].error("name", f'"{service.name}" is already the name of services[{first[service.name]}]')
        first.setdefault(service.name, index)


def refuse_metrics_on_a_service(part, metrics, services):
    """The metrics cannot be served where a service of TCP is."""
    if metrics.endpoint is None:
        return
    address, port = metrics.endpoint
    wildcards = ("0.0.0.0", "::")
    for index, service in enumerate(services):
        for listener in service.listen if service.protocol == "tcp" else ():
            same = listener.port == port and (":" in address) == (listener.family == IPV6)
            if same and (listener.wildcard or address in (listener.address, *wildcards)):
                part.error("listen", f"{metrics.listen} overlaps {listener} of services[{index}]; choose another port")
                return


def refuse_overlapping_listeners(parts, services):
    """Two listeners that could take the same connection are refused, within one service as well."""
    placed = {}  # (protocol, family, port) -> [(place, listener)]
    refused = set()
    for index, service in enumerate(services):
        number = -1
        for listener in service.listen:
            number += listener.offset == 0
            if not (listener.address and listener.port):
                continue  # refused already
            others = placed.setdefault((service.protocol, listener.family, listener.port), [])
            for place, other in others:
                if listener.overlaps(other) and (place, index, number) not in refused:
                    refused.add((place, index, number))  # a range is refused once, not for each of its ports
                    parts[index].error(
                        f"listen[{number}]",
                        f"{listener} overlaps {other} of services[{place[0]}].listen[{place[1]}]"
                        " (same port; a wildcard covers every address of its family)",
                    )
            others.append(((index, number), listener))
