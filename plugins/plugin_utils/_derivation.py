# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the derivations of all documents share: faults are collected, results are checked as the host will do it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Callable

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import DocumentError
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared.endpoints import join_endpoint
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._hosts import DerivationError, Meeting
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._marks_and_tables import FAMILY, SCHEMA
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._services import VARIABLE


def collect(errors: list[str], call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call, and keep the errors instead of raising them. Returns None where there were any."""
    try:
        return call(*arguments, **options)
    except DerivationError as error:
        errors.extend(error.errors)
        return None


def state_document(owner: str, protocol: int, sections: Mapping[str, Any], mark_engine: str = "auto") -> dict[str, Any]:
    """Put a state document together.

    :param sections: ``rules``, ``routes`` and so on; one without objects is left out, but for the four always there.
    :param mark_engine: what makes the marks, where there are any.
    :returns: a document that ``_routing.document.documents.load`` has accepted.
    :raises DerivationError: what it has refused.
    """
    objects = {key: sections.get(key, []) for key in ("rules", "routes", "marks", "sysctls")}
    objects.update({key: value for key, value in sections.items() if value})
    engine = {"mark_engine": mark_engine} if objects["marks"] and mark_engine != "auto" else {}
    data = {"schema": SCHEMA, "owner": owner, "protocol": protocol, **engine, **objects}
    try:
        documents.load(data)
    except DocumentError as error:
        raise DerivationError([f"{owner}: {one}" for one in error.errors]) from None
    return data


def conf_sysctls(version: int, devices: Iterable[str | None], key: str, value: str = "0") -> list[dict[str, str]]:
    """Return a per-interface sysctl for ``all`` and for each interface that is known."""
    names = ["all", *sorted({device for device in devices if device})]
    return [{"name": _conf(version, name, key), "value": value} for name in names]


def _conf(version: int, device: str, key: str) -> str:
    """Return the name of a per-interface sysctl; with slashes where the interface's name has a dot (sysctl(8))."""
    parts = ["net", FAMILY[version], "conf", device, key]
    return ("/" if "." in device else ".").join(parts)


def proxy_id(fleet: Fleet, proxy: str) -> int:
    """Return the id of a proxy, as seen from itself."""
    return fleet.proxy_id(proxy, all_meetings(fleet, proxy))


def all_meetings(fleet: Fleet, proxy: str) -> list[Meeting]:
    """Return where a proxy meets the backends of all its services, each place once."""
    found = [
        meeting
        for service in fleet.services_of_proxy(proxy)
        for ref in service.backends
        for meeting in fleet.meetings_of(proxy, ref).values()
    ]
    return list(dict.fromkeys(found))


def check_ids(ids: Mapping[str, int]) -> None:
    """Refuse two proxies with one id.

    :raises DerivationError: naming both and the remedy.
    """
    owners: dict[int, str] = {}
    errors = []
    for proxy, number in ids.items():
        if number in owners:
            errors.append(
                f"proxies {owners[number]} and {proxy} have the same id, {number}, so backends cannot tell them apart: "
                "set l4proxy_id (1 to 255) in the host_vars of one of them"
            )
        owners.setdefault(number, proxy)
    if errors:
        raise DerivationError(errors)


def unserved(fleet: Fleet, name: str) -> str:
    """Say why a host that is in a group has nothing to do."""
    role, group = ("forwarder", "proxies") if name in fleet.proxies else ("return_path", "backends")
    if name not in [*fleet.proxies, *fleet.backends]:
        return f"{name} is neither in the group proxies nor in the group backends; add it to one of them"
    if fleet.services_of_backend(name) and not fleet.proxies_of_backend(name):
        return (
            f"{name} is in the group backends, but the only proxy that would use it is {name} itself, which cannot be "
            "its own backend; take it out of the group, or let another proxy serve one of its services"
        )
    for ref in fleet.refs_by_address(name) if group == "backends" else ():
        return (
            f"{ref.path}: {ref.address} is an address of {name}, a host of the group {group}, but no service names "
            f"{name}, so its return path would never be set; write {join_endpoint(name, ref.port)} in place of it"
        )
    return (
        f"{name} is in the group {group}, but in no service of {VARIABLE}, and an empty configuration would end what "
        f"it serves now; name it in a service, take it out of the group, or set {role}_state: absent for it"
    )
