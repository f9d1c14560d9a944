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

# Each is a socket in every worker, and some 2 kB of the status: as many as start within seconds on two cores.
MOST_LISTENERS = 16384
MOST_BACKENDS = 16384
WILDCARD = {IPV4: "0.0.0.0", IPV6: "::"}
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
    names, places = {}, {}  # -> the first backend that has it
    for index, (part, backend) in enumerate(zip(parts, backends)):
        if backend.name is not None and names.setdefault(backend.name, index) != index:
            part.error(
                "name", f'"{backend.name}" is already the name of backends[{names[backend.name]}] of this service'
            )
        for family in (IPV4, IPV6):
            address = backend.address(family)
            if not address:
                continue
            first = places.setdefault((address, backend.port), index)
            if first != index:
                part.error(
                    family, f"{address} port {backend.port} is already backends[{first}] of this service; use weight"
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
    served = [family for family in (IPV4, IPV6) if service.backends_of(family)]
    for part, entry in zip(parts, entries):
        listener = entry[0]
        if listener.address and listener.family not in served:
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
    placed = {}  # (protocol, family, port) -> {address: (place, listener)}
    refused = set()
    for index, service in enumerate(services):
        number = -1
        for listener in service.listen:
            number += listener.offset == 0
            if not (listener.address and listener.port):
                continue  # refused already
            there = placed.setdefault((service.protocol, listener.family, listener.port), {})
            for place, other in _overlapping(listener, there):
                if (place, index, number) not in refused:
                    refused.add((place, index, number))  # a range is refused once, not for each of its ports
                    parts[index].error(
                        f"listen[{number}]",
                        f"{listener} overlaps {other} of services[{place[0]}].listen[{place[1]}]"
                        " (same port; a wildcard covers every address of its family)",
                    )
            there.setdefault(listener.address, ((index, number), listener))


def _overlapping(listener, there):
    """Return what a listener overlaps of those on its port, {address: (place, listener)}."""
    if listener.wildcard:
        return list(there.values())
    return [there[address] for address in (listener.address, WILDCARD[listener.family]) if address in there]


def refuse_too_many(document, services):
    """Refuse more than the forwarder was seen to start with."""
    for key, most in (("listen", MOST_LISTENERS), ("backends", MOST_BACKENDS)):
        count = sum(len(getattr(service, key)) for service in services)
        if count > most:
            what = "listen addresses (each port of a range is one)" if key == "listen" else "backends"
            document.error("services", f"have {count} {what}; a forwarder takes {most} at most: use several proxies")
