# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet of one inventory: which proxy serves which backend, and at which addresses they meet.

Pure. The documents in :mod:`_documents` are written from this and from nothing else, so both ends agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import (
    DerivationError,
    Host,
    HostAddress,
    Meeting,
    derived_id,
    host_from_variables,
    meet,
)
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import BackendRef, ServiceRef, parse_services

VERSIONS = (4, 6)


def known_addresses(documents: Mapping[str, Any]) -> dict[str, list[HostAddress]]:
    """Read the peers' addresses out of the documents that an earlier run left on a host.

    :param documents: ``return_path`` and ``forwarder``, each the parsed document or None.
    """
    known: dict[str, list[HostAddress]] = {}
    for mark in (documents.get("return_path") or {}).get("marks", ()):
        known[mark.get("name", "")] = [
            HostAddress(ip_address(str(via)), mac=mark.get("mac")) for via in mark.get("via", ())
        ]
    for service in (documents.get("forwarder") or {}).get("services", ()):
        for backend in service.get("backends", ()):
            values = [backend.get(family) for family in ("ipv4", "ipv6")]
            addresses = [HostAddress(ip_address(str(value))) for value in values if value]
            # A host with several ports in one service is listed as "host:port".
            known.setdefault(backend["name"], addresses)
            known.setdefault(backend["name"].rpartition(":")[0], addresses)
    return known


class Fleet:
    """Services, groups and hosts of one run, seen from the host that is being configured.

    :param services: ``l4proxy_services`` as the user wrote it, or None.
    :param view: ``host`` (the name it is seen from), ``proxies``, ``backends`` and ``inventory`` (names), ``known``
        (documents of an earlier run, see :func:`known_addresses`).
    :param hostvars: variables of every host, by name.
    :raises DerivationError: faults of ``l4proxy_services`` itself, or an empty group.
    """

    def __init__(self, services: Any, view: Mapping[str, Any], hostvars: Mapping[str, Mapping[str, Any]]) -> None:
        self.name = str(view["host"])
        self.proxies = [str(name) for name in view.get("proxies", ())]
        self.backends = [str(name) for name in view.get("backends", ())]
        self.services = parse_services(services, [str(name) for name in view.get("inventory", ())], self.proxies)
        self._hostvars = hostvars
        self._known = known_addresses(view.get("known") or {})
        self._hosts: dict[str, Host] = {}
        self._check_groups()

    def _check_groups(self) -> None:
        hosts = [(ref.path, ref.host) for service in self.services for ref in service.backends if ref.host]
        if hosts and not self.backends:
            raise DerivationError(
                ["the group of backends has no hosts, but l4proxy_services names some; put them into the group"]
            )
        raise_all(
            f"{path}.host: {host!r} is not in the group of backends, so its return path would never be set; "
            "add it to the group, or give its address instead of its name"
            for path, host in hosts
            if host not in self.backends
        )

    def host(self, name: str) -> Host:
        """Return one host of the inventory with the addresses that are known of it."""
        if name not in self._hosts:
            known = self._known.get(name, ()) if name != self.name else ()
            self._hosts[name] = host_from_variables(name, self._hostvars[name], known)
        return self._hosts[name]

    def services_of_proxy(self, proxy: str) -> list[ServiceRef]:
        """Return the services that ``proxy`` serves."""
        return [one for one in self.services if one.proxies is None or proxy in one.proxies]

    def proxies_of_backend(self, backend: str) -> list[str]:
        """Return the proxies from which ``backend`` is reached, in inventory order."""
        serving: set[str] = set()
        for service in self.services:
            if any(ref.host == backend for ref in service.backends):
                serving.update(self.proxies if service.proxies is None else service.proxies)
        return [proxy for proxy in self.proxies if proxy in serving]

    def backend_hosts_of_proxy(self, proxy: str) -> list[str]:
        """Return the inventory hosts that ``proxy`` forwards to, each once."""
        refs = [ref.host for service in self.services_of_proxy(proxy) for ref in service.backends if ref.host]
        return list(dict.fromkeys(refs))

    def meetings(self, proxy: str, backend: str) -> dict[int, Meeting]:
        """Return where a proxy and a backend meet, by IP version, over all services that join them.

        :raises DerivationError: an address is unknown, they share no subnet, or meet on two links in one family.
        """
        found: dict[int, Meeting] = {}
        for ref in [ref for service in self.services_of_proxy(proxy) for ref in service.backends]:
            if ref.host != backend:
                continue
            for version, meeting in self.meetings_of(proxy, ref).items():
                if found.setdefault(version, meeting).proxy != meeting.proxy:
                    raise DerivationError([_two_links(proxy, backend, found[version], meeting)])
        return found

    def meetings_of(self, proxy: str, ref: BackendRef) -> dict[int, Meeting]:
        """Return where a proxy meets a backend as one service names it, by IP version.

        A backend that is only an address may be off every link; a host of ours may not, since a way back has to be set.

        :raises DerivationError: an address is unknown, or a host of ours shares no subnet with the proxy.
        """
        given = ip_address(ref.address) if ref.address is not None else None
        mine = self.host(proxy)
        other = self.host(ref.host) if ref.host is not None else Host(ref.label)
        if given is not None:
            other = other.only(given)
        raise_all(_unknown_address(end, self.name) for end in (mine, other) if not end.addresses)
        found = {version: meet(mine, other, version) for version in VERSIONS}
        meetings = {version: meeting for version, meeting in found.items() if meeting}
        if ref.host is not None and (not meetings or (given is not None and given.version not in meetings)):
            raise DerivationError([_no_shared_subnet(mine, other)])
        return meetings

    def proxy_id(self, proxy: str, meetings: Iterable[Meeting]) -> int:
        """Return the id of ``proxy``: declared, or the host part of its address.

        :raises DerivationError: neither is to be had.
        """
        host = self.host(proxy)
        number = host.proxy_id if host.proxy_id is not None else derived_id(list(meetings))
        if number is None:
            addresses = ", ".join(str(one.address) for one in host.addresses) or "unknown"
            raise DerivationError(
                [
                    f"proxy {proxy} needs l4proxy_id (1 to 255): no id can be read off its address ({addresses}), "
                    "because it shares no subnet of /24 (IPv6: /120) or longer with its backends, or differs among them"
                ]
            )
        return number

    def peers(self, names: Iterable[str]) -> list[str]:
        """Return the hosts whose addresses the configuration of ``names`` depends on, themselves included."""
        wanted: dict[str, None] = {}
        for name in names:
            peers = [name]
            if name in self.backends:
                peers += self.proxies_of_backend(name)
            if name in self.proxies:
                peers += self.backend_hosts_of_proxy(name)
            wanted.update(dict.fromkeys(peers))
        return list(wanted)

    def backend_addresses(self, proxy: str, ref: BackendRef) -> dict[int, str]:
        """Return the addresses at which ``proxy`` reaches one backend, by IP version."""
        if ref.host is None:
            address = ip_address(str(ref.address))
            return {address.version: str(address)}
        return {version: str(one.backend.address) for version, one in self.meetings_of(proxy, ref).items()}


def raise_all(errors: Iterable[str]) -> None:
    """Raise :class:`DerivationError` with ``errors`` if there are any."""
    found: Sequence[str] = list(errors)
    if found:
        raise DerivationError(found)


def _unknown_address(host: Host, seen_from: str) -> str:
    return (
        f"the address of {host.name} is unknown to {seen_from}: it could not be asked and no earlier run left "
        f"it behind; start {host.name}, or declare l4proxy_address (and l4proxy_mac for a proxy) in its host_vars"
    )


def _no_shared_subnet(proxy: Host, backend: Host) -> str:
    def listed(host: Host) -> str:
        shown = (
            f"{one.address}/{one.prefix}" if one.prefix is not None else str(one.address) for one in host.addresses
        )
        return ", ".join(shown)

    return (
        f"proxy {proxy.name} ({listed(proxy)}) shares no subnet with backend {backend.name} ({listed(backend)}): "
        "return path strategy mark needs both on one link; declare l4proxy_address where the wrong interface was "
        "looked at, or move one of them"
    )


def _two_links(proxy: str, backend: str, one: Meeting, other: Meeting) -> str:
    ends = f"{one.backend.address} from {one.proxy.address}, and {other.backend.address} from {other.proxy.address}"
    return (
        f"proxy {proxy} would reach backend {backend} on two links ({ends}), but a backend knows one way back to a "
        "proxy in each family; use addresses of one subnet for both"
    )
