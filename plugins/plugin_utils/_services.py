# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parse ``l4proxy_services``: expand shorthand, resolve names, report every fault with its path. Pure.

Only the shape is checked here. What a port or a weight may be is checked by ``_forwarder/config``, which the derivation
calls on its result.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from typing import Any, Union

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared.endpoints import split_endpoint
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError

VARIABLE = "l4proxy_services"

# A user writes a host or an address; the config has a name and one address per family.
DERIVED_KEYS = {"name", "ipv4", "ipv6", "last_port"}
BACKEND_KEYS = {"host", "address"} | {one.name for one in fields(Backend)} - DERIVED_KEYS


@dataclass(frozen=True)
class BackendRef:
    """A backend as the user wrote it: an inventory host, an address, or both.

    :ivar options: the other keys (weight and so on), passed on unchanged.
    """

    path: str
    host: str | None
    address: str | None
    port: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its name in messages and in the config."""
        return self.host or self.address or self.path


@dataclass(frozen=True)
class ServiceRef:
    """A service as the user wrote it, with listeners as (address, port) and backends as :class:`BackendRef`."""

    index: int
    name: str
    listen: tuple[tuple[str, Any], ...]
    backends: tuple[BackendRef, ...]
    proxies: tuple[str, ...] | None
    options: Mapping[str, Any]

    @property
    def path(self) -> str:
        """Its place in the variable."""
        return f"{VARIABLE}[{self.index}]"

    @property
    def protocol(self) -> str:
        """What the user wrote: "tcp" or "udp", or anything until the config was checked."""
        return str(self.options.get("protocol", "tcp"))

    @property
    def health_port(self) -> Any:
        """The port of health checks as the user wrote it; None: the one that the backends serve on."""
        health = self.options.get("health")
        return _number(health.get("port")) if isinstance(health, Mapping) else None


# A port, or a range such as "8000-8009".
Port = Union[int, str]


def parse_endpoint(text: str) -> tuple[str, Port | None]:
    """Read ``host``, ``host:port``, ``1.2.3.4:port``, ``::1`` or ``[::1]:port``; the port may be a range.

    :returns: name and port (None: no port).
    :raises ValueError: the port is neither a number nor a range, or a bracket is not closed.
    """
    name, port = split_endpoint(text)
    if port and not re.fullmatch(r"[0-9]+(-[0-9]+)?", port):
        raise ValueError(f"{port!r} is not a port or a range of ports")
    return name, _number(port) if port else None


def first_port(port: Any) -> Any:
    """Return a port, or the first of a range; any other value unchanged."""
    return _number(str(port).partition("-")[0]) if isinstance(port, str) else port


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def find_name(text: str, names: Collection[str]) -> str | None:
    """Return the one of ``names`` that ``text`` stands for: itself, or the same IP address in another spelling."""
    if text in names:
        return text
    if not _is_address(text):
        return None
    address = ip_address(text)
    return next((name for name in names if _is_address(name) and ip_address(name) == address), None)


class _Parser:
    """Reads parts of the variable and collects their faults; what cannot be read is None."""

    def __init__(self, inventory: Collection[str], proxies: Collection[str], backends: Collection[str]) -> None:
        self.inventory, self.group, self.hosts = inventory, proxies, backends
        self.errors: list[str] = []

    def listener(self, path: str, value: Any) -> tuple[str, Any] | None:
        if isinstance(value, Mapping):
            return str(value.get("address", "")), _number(value.get("port"))
        try:
            address, port = parse_endpoint(str(value))
        except ValueError as error:
            self.errors.append(f"{path}: {error}")
            return None
        if port is None or not _is_address(address):
            self.errors.append(f"{path}: {value!r} is not a listen address; write 0.0.0.0:80, 192.0.2.1:80 or [::]:80")
            return None
        return address, port

    def backend(self, path: str, value: Any, default_port: Any) -> BackendRef | None:
        if isinstance(value, Mapping):
            self.errors += [
                f"{path}.{key}: is not a known key; the known ones are {', '.join(sorted(BACKEND_KEYS))}"
                for key in sorted(set(value) - BACKEND_KEYS)
            ]
            options = {key: _number(value[key]) for key in value if key in BACKEND_KEYS}
            host, address = options.pop("host", None), options.pop("address", None)
            port = options.pop("port", default_port)
        else:
            try:
                name, port = parse_endpoint(str(value))
            except ValueError as error:
                self.errors.append(f"{path}: {error}")
                return None
            host, address = (None, name) if _is_address(name) else (name, None)
            port, options = default_port if port is None else port, {}
        return self._checked(self._ref(path, host and str(host), address and str(address), port, options))

    def _ref(self, path: str, host: str | None, address: str | None, port: Any, options: dict[str, Any]) -> BackendRef:
        """Return a backend; an address that is the name of an inventory host stands for that host."""
        if host is None and address is not None:
            host = find_name(address, self.hosts)
            address = None if host else address
        elif host is not None:
            host = find_name(host, self.inventory) or host
        return BackendRef(path, host, address, port, options)

    def _checked(self, ref: BackendRef) -> BackendRef | None:
        before = len(self.errors)
        if ref.host is None and ref.address is None:
            self.errors.append(f"{ref.path}: a backend needs a host of the inventory or an address")
        if ref.host is not None and ref.host not in self.inventory:
            self.errors.append(
                f"{ref.path}.host: {ref.host!r} is not in the inventory; add the host, or use its address"
            )
        if ref.address is not None and not _is_address(ref.address):
            self.errors.append(f"{ref.path}.address: {ref.address!r} is not an IP address")
        if ref.port is None:
            self.errors.append(f"{ref.path}.port: is required, because the service listens on more than one port")
        return ref if len(self.errors) == before else None

    def proxies(self, path: str, value: Any) -> tuple[str, ...] | None:
        if value is None:
            return None
        given = [str(name) for name in ([value] if isinstance(value, str) else value)]
        names = tuple(find_name(name, self.group) or name for name in given)
        if not names:
            self.errors.append(
                f"{path}.proxies: is empty, so no proxy would serve the service; name one, or remove the key"
            )
        for name in names:
            if name not in self.group:
                known = ", ".join(sorted(self.group)) or "no hosts"
                self.errors.append(
                    f"{path}.proxies: {name!r} is not in the group of proxies ({known}); correct it, or add the host"
                )
        return names

    def service(self, index: int, value: Any) -> ServiceRef | None:
        path = f"{VARIABLE}[{index}]"
        if not isinstance(value, Mapping):
            self.errors.append(f"{path}: expected a mapping with name, listen and backends, found {value!r}")
            return None
        options = dict(value)
        listen = as_sequence(options.pop("listen", None))
        backends = as_sequence(options.pop("backends", None))
        proxies = self.proxies(path, options.pop("proxies", None))
        listeners = [self.listener(f"{path}.listen[{i}]", one) for i, one in enumerate(listen)]
        ports = {one[1] for one in listeners if one}
        default_port = ports.pop() if len(ports) == 1 else None
        if not backends:
            self.errors.append(f"{path}.backends: at least one backend is required")
        if not listen:
            self.errors.append(f'{path}.listen: is required; write for example ["0.0.0.0:80", "[::]:80"]')
        refs = [self.backend(f"{path}.backends[{i}]", one, default_port) for i, one in enumerate(backends)]
        return ServiceRef(
            index=index,
            name=str(options.get("name", "")),
            listen=tuple(one for one in listeners if one),
            backends=tuple(ref for ref in refs if ref),
            proxies=proxies,
            options=options,
        )


def _number(value: Any) -> Any:
    """Return a number that is written as text (quoted or templated) as int; any other value unchanged."""
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,10}", value) else value


def as_sequence(value: Any) -> list[Any]:
    """Return a list: a single value as a list of one, None as an empty list."""
    if value is None:
        return []
    return [value] if isinstance(value, (str, Mapping)) else list(value)


def parse_services(
    value: Any, inventory: Collection[str], proxies: Collection[str], backends: Collection[str] = ()
) -> list[ServiceRef]:
    """Read ``l4proxy_services``.

    :param inventory: names of all hosts of the inventory.
    :param proxies: names in the group of proxies.
    :param backends: names in the group of backends; a backend given by such a name, an IP address, is that host.
    :raises DerivationError: with every fault of the variable.
    """
    if value is None:
        raise DerivationError(
            [
                f"{VARIABLE} is not defined on this host; it belongs in group_vars/all, because both ends are "
                "derived from it"
            ]
        )
    if isinstance(value, (str, Mapping)) or not value:
        raise DerivationError([f"{VARIABLE}: expected a list of services, found {value!r}"])
    parser = _Parser(inventory, proxies, backends)
    services = [parser.service(index, one) for index, one in enumerate(value)]
    if not proxies:
        parser.errors.append("the group of proxies has no hosts; put at least one host into it")
    if parser.errors:
        raise DerivationError(parser.errors)
    return [service for service in services if service]
