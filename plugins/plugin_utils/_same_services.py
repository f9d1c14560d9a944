# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that all hosts of a run have the same services, because both ends are derived from them, and that all proxies
choose a client's backend by the same hash table. Pure.

Each host evaluates the variable itself, so templates in it use that host's variables. Hosts may differ in what only a
proxy uses: the addresses it listens on, and options such as timeouts and weights. A service of the kernel datapath is
stricter: hosts may differ only in its listen addresses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Callable

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.defaults import HASH_TABLES
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._datapath import FORWARDER, KEY, REMEDY
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import UnreadableVariable
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import VARIABLE, as_sequence, parse_endpoint

# In place of the services of a host: they could not be evaluated; it has none.
UNREADABLE, UNDEFINED = "", "null"
# In a sentence: characters of a value, number of hosts.
SHOWN_TEXT, SHOWN_HOSTS = 60, 3

HASH_TABLE, VIRTUAL_IPS = "l4proxy_hash_table", "l4proxy_virtual_ips"

# Why hosts must not differ in a value, and what to do.
BOTH_ENDS = (
    "both ends are derived from one list, so put all services into group_vars/all, each with the `proxies` that serve "
    "it, or give each site an inventory of its own"
)
ALL_PROXIES = (
    "for a connection that moves to another proxy, that proxy must choose the same backend, so a service of the kernel "
    f"datapath may only differ in its listen addresses; set the value once, {REMEDY}"
)

MISSING = object()
# Only a play has these, so a template that uses them cannot be evaluated from outside.
NOT_OUTSIDE = re.compile(r"'(hostvars|groups|vars|ansible_play_\w+)' is undefined")

Hosts = Mapping[str, Mapping[str, Any]]


def faults(names: Iterable[str], inventory: Hosts) -> list[str]:
    """Return the faults if the hosts of a run do not have the same services.

    :param names: hosts of the run whose facts were gathered.
    """
    views = {name: inventory[name]["__l4proxy_fleet"] for name in names}
    group = [host for view in views.values() for key in ("proxies", "backends") for host in view.get(key, ())]
    proxies = dict.fromkeys(host for view in views.values() for host in view.get("proxies", ()))
    return disagreements(services_by_host(views, dict.fromkeys(group), inventory), inventory) or [
        *_hash_tables(proxies, inventory),
        *_virtual_ips(proxies, inventory),
    ]


def disagreements(services: Mapping[str, str], inventory: Hosts) -> list[str]:
    """Return the faults if hosts do not have the same services.

    :param services: by host as JSON, or :data:`UNREADABLE` or :data:`UNDEFINED`.
    """
    reasons: dict[str, list[str]] = {}
    for host, text in services.items():
        why = reason(inventory[host]) if text in (UNREADABLE, UNDEFINED) else None
        if text == UNREADABLE or why:
            reasons.setdefault(why or "a template in it cannot be evaluated", []).append(host)
    if reasons:
        return [_unreadable(why, hosts) for why, hosts in reasons.items()]
    undefined = [host for host, text in services.items() if text == UNDEFINED]
    if undefined and len(undefined) < len(services):
        others = [host for host in services if host not in undefined]
        return [
            f"{VARIABLE} is defined on {_hosts(others)}, but not on {_hosts(undefined)}; it belongs in group_vars/all, "
            "because both ends are derived from it"
        ]
    return list(_differences(services))


def _hash_tables(proxies: Iterable[str], inventory: Hosts) -> Iterable[str]:
    by_value: dict[str, list[str]] = {}
    for host in proxies:
        with suppress(UnreadableVariable):  # the run of that host says so
            by_value.setdefault(str(inventory[host].get(HASH_TABLE) or HASH_TABLES[0]), []).append(host)
    if len(by_value) > 1:
        values = ", and ".join(f"{value} on {_hosts(hosts)}" for value, hosts in by_value.items())
        yield (
            f"{HASH_TABLE} is {values}; a client would get another backend at each proxy, so set it once, in "
            "group_vars/all"
        )


def _virtual_ips(proxies: Iterable[str], inventory: Hosts) -> Iterable[str]:
    by_host: dict[str, Any] = {}
    for host in proxies:
        with suppress(UnreadableVariable):  # as above
            entries = as_sequence(inventory[host].get(VIRTUAL_IPS))
            # The interface may have another name on each host.
            by_host[host] = [
                {key: each for key, each in one.items() if key != "interface"} if isinstance(one, dict) else one
                for one in entries
            ]
    first = next(iter(by_host), "")
    for host, value in by_host.items():
        difference = _first_difference(VIRTUAL_IPS, by_host[first], value)
        if difference:
            path, here, there = difference
            yield (
                f"{path} is {_text(here)} on {first}, and {_text(there)} on {host}; all proxies need the same list, so "
                "set it once, in group_vars/all"
            )


def _unreadable(why: str, hosts: list[str]) -> str:
    return (
        f"{VARIABLE} cannot be evaluated on {_hosts(hosts)}: {why}; every host needs the whole list, so define "
        "the variables that it uses for all hosts (group_vars/all)"
    )


def _differences(services: Mapping[str, str]) -> Iterable[str]:
    first = next(iter(services), "")
    by_text: dict[str, list[str]] = {}
    for host, text in services.items():
        by_text.setdefault(text, []).append(host)
    for text, hosts in list(by_text.items())[1:]:
        for part, remedy in ((_shared_of, BOTH_ENDS), (_of_kernel, ALL_PROXIES)):
            difference = _first_difference(VARIABLE, *(_part(json.loads(one), part) for one in (services[first], text)))
            if difference:
                path, here, there = difference
                yield (
                    f"{VARIABLE} differs between {first} and {_hosts(hosts)}: {path} is {_text(here)} on {first}, and "
                    f"{_text(there)} on {hosts[0]}; {remedy}"
                )
                break


def _part(services: Any, part: Callable[[Mapping[str, Any]], Any]) -> Any:
    """Return a part of each service."""
    return [part(one) if isinstance(one, dict) else one for one in as_sequence(services)]


def _of_kernel(service: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all proxies must have the same of a service that the kernel forwards."""
    return {**service, "listen": None} if service.get(KEY, FORWARDER) != FORWARDER else {}


def _shared_of(service: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a service that both ends are derived from."""
    shared = {key: service[key] for key in ("name", "protocol", "proxies", KEY) if key in service}
    shared["listen"] = [_without_address(one) for one in as_sequence(service.get("listen"))]
    shared["backends"] = [
        {key: one[key] for key in ("host", "address", "port") if key in one} if isinstance(one, dict) else one
        for one in as_sequence(service.get("backends"))
    ]
    return shared


def _without_address(listen: Any) -> Any:
    """Return the wildcard address of the family, and the port; any other value unchanged."""
    try:
        pair = (listen.get("address"), listen.get("port")) if isinstance(listen, dict) else parse_endpoint(str(listen))
    except ValueError:
        return listen
    return f"{'[::]' if ':' in str(pair[0]) else '0.0.0.0'}:{pair[1]}"


def _first_difference(path: str, one: Any, other: Any) -> tuple[str, Any, Any] | None:
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = [(f"{path}.{key}", one.get(key, MISSING), other.get(key, MISSING)) for key in {**one, **other}]
    elif isinstance(one, list) and isinstance(other, list):
        length = max(len(one), len(other))
        ends = [[*side, *[MISSING] * (length - len(side))] for side in (one, other)]
        pairs = [(f"{path}[{at}]", here, there) for at, (here, there) in enumerate(zip(*ends))]
    else:
        return None if one == other else (path, one, other)
    return next(filter(None, (_first_difference(*pair) for pair in pairs)), None)


def _text(value: Any) -> str:
    if value is MISSING:
        return "missing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_TEXT else f"{text[: SHOWN_TEXT - 1]}…"


def _hosts(names: list[str]) -> str:
    if len(names) > SHOWN_HOSTS:
        return f"{', '.join(names[:SHOWN_HOSTS])} and {len(names) - SHOWN_HOSTS} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def services_by_host(views: Mapping[str, Mapping[str, Any]], group: Iterable[str], inventory: Hosts) -> dict[str, str]:
    """Return the services of hosts as JSON: as evaluated by the hosts of the run, else as the inventory has them.

    Hosts outside of the run count only if the first host of the run has its services from the inventory and not from
    its play, and if theirs can be evaluated from outside.

    :param views: by host of the run, with what it has evaluated (``services``).
    :param group: the hosts that the services concern.
    """
    evaluated = {name: _normal(str(view["services"])) for name, view in views.items() if "services" in view}
    first = next(iter(evaluated), None)
    if first is None or _by_inventory(inventory[first]) != evaluated[first]:
        return evaluated
    others = {name: _by_inventory(inventory[name]) for name in group if name not in evaluated}
    return {**evaluated, **{name: text for name, text in others.items() if text != UNREADABLE}}


def services_of(view: Mapping[str, Any], otherwise: Any) -> Any:
    """Return the services as a host has evaluated them; ``otherwise`` if it has not."""
    return json.loads(view["services"]) if view.get("services") else otherwise


def reason(variables: Mapping[str, Any]) -> str | None:
    """Return why the services of a host cannot be evaluated, as far as that shows outside of its play."""
    try:
        variables.get(VARIABLE)
    except UnreadableVariable as error:
        return None if NOT_OUTSIDE.search(error.reason) else error.reason
    return None


def _by_inventory(variables: Mapping[str, Any]) -> str:
    try:
        return _normal(json.dumps(variables.get(VARIABLE)))
    except (UnreadableVariable, TypeError):  # TypeError: a value that JSON does not have
        return UNREADABLE


def _normal(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True) if text else UNREADABLE
