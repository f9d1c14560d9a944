# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put a state document together, and check it with the code that the host uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import DocumentError
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._marks_and_tables import FAMILY, SCHEMA

ALWAYS_PRESENT = ("rules", "routes", "marks", "sysctls")


def state_document(owner: str, protocol: int, sections: Mapping[str, Any], mark_engine: str = "auto") -> dict[str, Any]:
    """Return the state document of an owner.

    :param sections: ``rules``, ``routes`` and so on. An empty one is left out, except the four that are always present.
    :param mark_engine: what makes the marks, if there are any.
    :returns: a document that ``_routing.document.documents.load`` has accepted.
    :raises DerivationError: that has refused it.
    """
    objects = {key: sections.get(key, []) for key in ALWAYS_PRESENT}
    objects.update({key: value for key, value in sections.items() if value})
    engine = {"mark_engine": mark_engine} if objects["marks"] and mark_engine != "auto" else {}
    data = {"schema": SCHEMA, "owner": owner, "protocol": protocol, **engine, **objects}
    try:
        documents.load(data)
    except DocumentError as error:
        raise DerivationError([f"{owner}: {sentence}" for sentence in error.errors]) from None
    return data


def conf_sysctls(version: int, devices: Iterable[str | None], key: str, value: str = "0") -> list[dict[str, str]]:
    """Return a per-interface sysctl for ``all`` and for each interface that is known."""
    names = ["all", *sorted({device for device in devices if device})]
    return [{"name": _conf(version, name, key), "value": value} for name in names]


def _conf(version: int, device: str, key: str) -> str:
    """Return the name of a per-interface sysctl, with slashes if the interface's name has a dot (sysctl(8))."""
    parts = ["net", FAMILY[version], "conf", device, key]
    return ("/" if "." in device else ".").join(parts)
