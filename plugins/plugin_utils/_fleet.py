# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet of one inventory: which proxy serves which backend, and at which addresses they meet.

Pure. The documents of both ends are written from this and from nothing else, so they agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.backend_names import host_of
from ansible_collections.trueip.l4proxy.plugins.plugin_utils import (
    _marks_and_tables,
    _return_path_addresses,
    _return_path_auto,
    _tunnels,
)
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._facts import Address, HostAddress, fact_addresses
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import (
    DerivationError,
    Host,
    Meeting,
    derived_id,
    host_from_variables,
    meet,
)
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_addresses import ADDRESSES_VARIABLE
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._return_path_strategies import (
    ADDRESS,
    MARK,
    STRATEGY_VARIABLE,
)
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import (
    BackendRef,
    Port,
    ServiceRef,
    parse_services,
)

VERSIONS = (4, 6)
SPELLED = {4: "IPv4", 6: "IPv6"}


def known_addresses(documents: Mapping[str, Any]) -> dict[str, list[HostAddress]]:
    """Read the peers' addresses out of the documents that an earlier run left on a host.

    :param documents: ``return_path`` and ``forwarder``, each the parsed document or None.
    """
    known: dict[str, list[HostAddress]] = {}
    for mark in (documents.get("return_path") or {}).get("marks", ()):
        known[mark.get("name", "")] = [HostAddress(ip_address(str(via))) for via in mark.get("via", ())]
    services = (documents.get("forwarder") or {}).get("services", ())
    backends = [backend for service in services for backend in service.get("backends", ())]
    # A name counts before the host in it: 2001:db8::1:80 may be a host of its own, or port 80 of 2001:db8::1.
    for name_of in (str, host_of):
        for backend in backends:
            values = [backend.get(family) for family in ("ipv4", "ipv6")]
            addresses = [HostAddress(ip_address(str(value))) for value in values if value]
            known.setdefault(name_of(backend["name"]), addresses)
    return known


class Fleet:
    """Services, groups and hosts of one run, seen from the host that is being configured.

    :param services: ``l4proxy_services`` as the user wrote it, or None.
    :param view: ``host`` (the name it is seen from), ``proxies``, ``backends`` and ``inventory`` (names), ``known``
        (documents of an earlier run on that host: ``return_path``, ``local_delivery``, ``forwarder``), ``settings``
        (lines ``/proc/sys/NAME:VALUE`` of that host).
    :param hostvars: variables of every host, by name; ``__l4proxy_fleet`` is the view from that host, if it is in the
        run.
    :raises DerivationError: faults of ``l4proxy_services`` itself, or an empty group.
    """

    def __init__(self, services: Any, view: Mapping[str, Any], hostvars: Mapping[str, Mapping[str, Any]]) -> None:
        self.name = str(view["host"])
        self.proxies = [str(name) for name in view.get("proxies", ())]
        self.backends = [str(name) for name in view.get("backends", ())]
        inventory = [str(name) for name in view.get("inventory", ())]
        self.services = parse_services(services, inventory, self.proxies, self.backends)
        self.known: Mapping[str, Any] = view.get("known") or {}
        self.settings = _settings(view.get("settings") or ())
        self._hostvars = hostvars
        self._known_addresses = known_addresses(self.known)
        self._hosts: dict[str, Host] = {}
        self._own: dict[str, set[Address]] = {}
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
        """Return one host of the inventory with the addresses that are known of it.

        Those it has for its proxies are not among them: others reach it elsewhere.
        """
        if name not in self._hosts:
            known = self._known_addresses.get(name, ()) if name != self.name else ()
            host = host_from_variables(name, self._hostvars[name], known)
            self._hosts[name] = host.without(self._set_apart(name))
        return self._hosts[name]

    def _set_apart(self, backend: str) -> set[Address]:
        """Return the addresses that a backend has, or had until lately, for its proxies."""
        declared = {one.address for addresses in self.dedicated(backend).values() for one in addresses}
        return declared | _return_path_addresses.owned(self._stored(backend))

    def _stored(self, name: str) -> Mapping[str, Any] | None:
        """Return the return path document that an earlier run left on a host, where that was read in this run."""
        view = {"known": self.known} if name == self.name else self._hostvars[name].get("__l4proxy_fleet") or {}
        return (view.get("known") or {}).get("return_path")

    def dedicated(self, backend: str) -> _return_path_addresses.Dedicated:
        """Return the addresses that a backend has for each of its proxies.

        :raises DerivationError: faults of ``return_path_addresses``.
        """
        value = self._hostvars[backend].get(ADDRESSES_VARIABLE)
        return _return_path_addresses.read(backend, value, self.proxies)

    def declared_strategy(self, backend: str) -> Any:
        """Return ``return_path_strategy`` as the inventory has it."""
        return self._hostvars[backend].get(STRATEGY_VARIABLE, MARK)

    def numbers(self, host: str) -> _marks_and_tables.Numbers:
        """Return the marks, tables and priorities that a host has for us.

        :raises DerivationError: faults of ``l4proxy_numbers``.
        """
        return _marks_and_tables.read(host, self._hostvars[host].get(_marks_and_tables.VARIABLE))

    def strategy(self, backend: str) -> _return_path_auto.Choice:
        """Return the return path strategy of a backend, and why it is that.

        :raises DerivationError: it is unknown, or ``auto`` finds none that works.
        """
        wanted = self.declared_strategy(backend)
        situation = self._situation(backend) if wanted == _return_path_auto.AUTO else _return_path_auto.Situation()
        return _return_path_auto.choose(backend, wanted, situation)

    def _situation(self, backend: str) -> _return_path_auto.Situation:
        applied = _return_path_auto.applied(self._stored(backend))
        dedicated = {one.address for addresses in self.dedicated(backend).values() for one in addresses}
        told = {one.address for one in self._known_addresses.get(backend, ())}
        if applied is None and told:
            # The backend could not be asked, but this proxy was told by an earlier run where to reach it.
            applied = ADDRESS if told & dedicated else MARK
        facts = self._hostvars[backend].get("ansible_facts") or {}
        services = self.services_of_backend(backend)
        served = {6 if ":" in address else 4 for service in services for address, _port in service.listen}
        own = {one.address.version for one in self.host(backend).addresses}
        missing = [
            version for version in VERSIONS if version in served & own and not facts.get(f"default_ipv{version}")
        ]
        tunnels = self.tunnels(backend)
        return _return_path_auto.Situation(
            applied=applied,
            tunnels=tuple(tunnels),
            indistinct=tuple(_tunnels.indistinct(tunnels)),
            dedicated=bool(dedicated),
            without_default=tuple(SPELLED[version] for version in missing) if facts else (),
            udp=any(service.protocol == "udp" for service in services),
        )

    def tunnels(self, backend: str) -> dict[str, list[str]]:
        """Return the proxies behind each interface of a backend that has no MAC addresses."""
        facts = self._hostvars[backend].get("ansible_facts") or {}
        proxies = [self.host(proxy) for proxy in self.proxies_of_backend(backend) if proxy != backend]
        return _tunnels.behind(self.host(backend), facts, proxies)

    def seen_from(self, proxy: str, backend: str) -> Host:
        """Return a backend with the addresses at which one proxy reaches it.

        :raises DerivationError: by its strategy it needs addresses for this proxy, and has none.
        """
        host = self.host(backend)
        if self.strategy(backend).strategy != ADDRESS:
            return host
        addresses = self.dedicated(backend).get(proxy)
        if not addresses:
            raise DerivationError([_no_address_for(proxy, backend)])
        return _return_path_addresses.placed(host, addresses)

    def refs_by_address(self, backend: str) -> list[BackendRef]:
        """Return where services give an address that a backend has, without naming the backend."""
        own = {one.address for one in self.host(backend).addresses}
        refs = [ref for service in self.services for ref in service.backends if ref.host is None]
        return [ref for ref in refs if ref.address and ip_address(ref.address) in own]

    def services_of_proxy(self, proxy: str) -> list[ServiceRef]:
        """Return the services that ``proxy`` serves, each without that host among the backends.

        A host may be both: then it is a backend of the other proxies. What it sent to itself would never leave it.
        """
        served = [one for one in self.services if one.proxies is None or proxy in one.proxies]
        return [replace(one, backends=tuple(ref for ref in one.backends if ref.host != proxy)) for one in served]

    def services_of_backend(self, backend: str) -> list[ServiceRef]:
        """Return the services that have ``backend`` as a server."""
        return [one for one in self.services if any(ref.host == backend for ref in one.backends)]

    def proxies_of_service(self, service: ServiceRef) -> list[str]:
        """Return the proxies that serve ``service``, in inventory order."""
        return [proxy for proxy in self.proxies if service.proxies is None or proxy in service.proxies]

    def proxies_of_backend(self, backend: str) -> list[str]:
        """Return the proxies from which ``backend`` is reached, in inventory order."""
        services = self.services_of_backend(backend)
        serving = {proxy for service in services for proxy in self.proxies_of_service(service)} - {backend}
        return [proxy for proxy in self.proxies if proxy in serving]

    def udp_ports(self, backend: str) -> dict[Port, set[str]]:
        """Return the UDP ports of a backend, each (or each range) with the proxies that forward to it."""
        found: dict[Port, set[str]] = {}
        for service in self.services_of_backend(backend):
            for ref in service.backends:
                if service.protocol == "udp" and ref.host == backend:
                    found.setdefault(ref.port, set()).update({*self.proxies_of_service(service)} - {backend})
        return found

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
        self._refuse_own(proxy, ref, [given] if given is not None else [])
        mine = self.host(proxy)
        other = self.seen_from(proxy, ref.host) if ref.host is not None else Host(ref.label)
        if given is not None:
            raise_all(self._not_reached_there(proxy, ref, other))
            other = other.only(given)
        raise_all(_unknown_address(end, self.name) for end in (mine, other) if not end.addresses)
        # An address that both have (docker0 and its like) is no way from one to the other.
        apart = other.without(self.own_addresses(proxy))
        if not apart.addresses:
            self._refuse_own(proxy, ref, [one.address for one in other.addresses])
        found = {version: meet(mine, apart, version) for version in VERSIONS}
        meetings = {version: meeting for version, meeting in found.items() if meeting}
        if ref.host is not None and (not meetings or (given is not None and given.version not in meetings)):
            raise DerivationError([_no_shared_subnet(mine, other)])
        return meetings

    def own_addresses(self, name: str) -> set[Address]:
        """Return every address that a host is known to have: in facts, declared, or for its proxies."""
        if name not in self._own:
            facts = fact_addresses(self._hostvars[name].get("ansible_facts") or {})
            self._own[name] = {one.address for one in (*facts, *self.host(name).addresses)} | self._set_apart(name)
        return self._own[name]

    def bridges(self, name: str) -> set[str]:
        """Return the bridges of a host that lead to no router of its own: to its containers, that is."""
        facts = self._hostvars[name].get("ansible_facts") or {}
        routers = {(facts.get(f"default_ipv{version}") or {}).get("interface") for version in VERSIONS}
        found = [one for one in facts.values() if isinstance(one, Mapping) and one.get("type") == "bridge"]
        return {str(one.get("device")) for one in found} - {str(router) for router in routers}

    def _refuse_own(self, proxy: str, ref: BackendRef, addresses: Iterable[Address]) -> None:
        """Refuse a backend that is the proxy itself: rules for its replies would take all that the proxy sends."""
        own = self.own_addresses(proxy)
        named = f" ({ref.host})" if ref.host is not None else ""
        raise_all(
            f"{ref.path}: {address}{named} is an address of proxy {proxy} itself, which cannot be its own backend; "
            f"give the address of another host, or, where {proxy} is to be a backend of other proxies, its name: "
            f"{{host: {proxy}, port: {ref.port}}}, which {proxy} itself leaves out"
            for address in addresses
            if address in own
        )

    def _not_reached_there(self, proxy: str, ref: BackendRef, seen: Host) -> Iterable[str]:
        """Say why a given address of a backend cannot be right: proxies reach it at those it has for them."""
        if ref.host is None or self.strategy(ref.host).strategy != ADDRESS:
            return
        addresses = [str(one.address) for one in seen.addresses]
        if ref.address not in addresses:
            yield (
                f"{ref.path}.address: {ref.address} is not where {proxy} reaches {ref.host}, whose return path "
                f"strategy is {ADDRESS} ({', '.join(addresses)}); leave the key out"
            )

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
                # The other proxies too: each has its own part of the source ports.
                peers += self.backend_hosts_of_proxy(name) + self.proxies
            wanted.update(dict.fromkeys(peers))
        return list(wanted)

    def backend_addresses(self, proxy: str, ref: BackendRef) -> dict[int, str]:
        """Return the addresses at which ``proxy`` reaches one backend, by IP version."""
        if ref.host is None:
            address = ip_address(str(ref.address))
            self._refuse_own(proxy, ref, [address])
            return {address.version: str(address)}
        return {version: str(one.backend.address) for version, one in self.meetings_of(proxy, ref).items()}


def _settings(lines: Iterable[str]) -> dict[str, str]:
    """Read lines ``/proc/sys/net/ipv4/ip_forward:1``, as grep prints them, into sysctls by name."""
    pairs = [line.rpartition(":") for line in lines]
    return {path.replace("/proc/sys/", "").replace("/", "."): value.strip() for path, _colon, value in pairs}


def _no_address_for(proxy: str, backend: str) -> str:
    return (
        f"{STRATEGY_VARIABLE} of {backend} is {ADDRESS}, but {ADDRESSES_VARIABLE} has none for "
        f'proxy {proxy}; write for example {ADDRESSES_VARIABLE}: {{{proxy}: ["192.0.2.121", '
        f'"2001:db8::121"]}} in the host_vars of {backend}, with unused addresses of the subnet it shares with {proxy}'
    )


def raise_all(errors: Iterable[str]) -> None:
    """Raise :class:`DerivationError` with ``errors`` if there are any."""
    found: Sequence[str] = list(errors)
    if found:
        raise DerivationError(found)


def _unknown_address(host: Host, seen_from: str) -> str:
    if host.interfaces:
        return (
            f"{host.name} has no address at which others could reach it, but only {_listed(host)}; give it one in a "
            "subnet of the other end"
        )
    return (
        f"the address of {host.name} is unknown to {seen_from}: it could not be asked and no earlier run left "
        f"it behind; start {host.name}, or declare l4proxy_address (and l4proxy_mac for a proxy) in its host_vars"
    )


def _listed(host: Host) -> str:
    """Return the addresses of a host, and what of it was left out, in words."""
    shown = [f"{one.address}/{one.prefix}" if one.prefix is not None else str(one.address) for one in host.addresses]
    left_out = [f"{address}, which is {why}" for one in host.interfaces for address, why in one.left_out]
    return ", ".join(shown + left_out) or f"interfaces {', '.join(one.name for one in host.interfaces)}"


def _no_shared_subnet(proxy: Host, backend: Host) -> str:
    alone = [one for host in (proxy, backend) for one in host.addresses if one.prefix == one.address.max_prefixlen]
    usual = {4: 24, 6: 64}
    examples = [f'"{one.address}/{usual[one.address.version]}"' for one in alone[:1]]
    prefix = f", with the prefix length of its link ({examples[0]})" if examples else ""
    return (
        f"proxy {proxy.name} ({_listed(proxy)}) shares no subnet with backend {backend.name} ({_listed(backend)}): "
        "every return path strategy needs both on one link; declare l4proxy_interface or l4proxy_address where the "
        f"wrong interface was looked at{prefix}, or move one of them"
    )


def _two_links(proxy: str, backend: str, one: Meeting, other: Meeting) -> str:
    ends = f"{one.backend.address} from {one.proxy.address}, and {other.backend.address} from {other.proxy.address}"
    return (
        f"proxy {proxy} would reach backend {backend} on two links ({ends}), but a backend knows one way back to a "
        "proxy in each family; use addresses of one subnet for both"
    )
