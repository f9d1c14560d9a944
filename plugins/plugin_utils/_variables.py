# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Variables of hosts with their templates evaluated; a failure names host and variable.

Ansible evaluates a template when its value is used, which may be deep inside a list. Here the whole variable is
evaluated when it is first read, so the derivation works with plain values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import UnreadableVariable

FACTS = "ansible_facts"


def plain(value: Any) -> Any:
    """Return a copy in which every template has been evaluated."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if not isinstance(value, (str, int, float)):
        str(value)  # the template engine's undefined value, which raises when it is used
    return value


def read(what: str, value: Any) -> Any:
    """Return a plain copy of a value; ``what`` names it in the error.

    :raises UnreadableVariable: a template in it cannot be evaluated.
    """
    try:
        return plain(value)
    except Exception as error:  # anything a template may raise: undefined names, failing filters and lookups
        raise UnreadableVariable(what, error) from error


class HostVariables(Mapping[str, Any]):
    """Variables of one host; each is evaluated when it is first read."""

    def __init__(self, name: str, variables: Mapping[str, Any]) -> None:
        self._name, self._variables = name, variables
        self._read: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._variables:
            raise KeyError(key)
        if key not in self._read:
            self._read[key] = self._evaluated(key)
        return self._read[key]

    def _evaluated(self, key: str) -> Any:
        try:
            value = self._variables[key]
        except Exception as error:  # as above, for a template that is the whole variable
            raise UnreadableVariable(f"{key} of {self._name}", error) from error
        # Facts are many, and come from other machines: templates in them are not evaluated.
        return value if key == FACTS else read(f"{key} of {self._name}", value)

    def __contains__(self, key: object) -> bool:
        return key in self._variables

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)


class Inventory(Mapping[str, HostVariables]):
    """``hostvars``, with each host's variables as :class:`HostVariables`."""

    def __init__(self, hostvars: Mapping[str, Mapping[str, Any]]) -> None:
        self._hostvars = hostvars
        self._hosts: dict[str, HostVariables] = {}

    def __getitem__(self, name: str) -> HostVariables:
        if name not in self._hosts:
            self._hosts[name] = HostVariables(name, self._hostvars[name])
        return self._hosts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._hostvars)

    def __len__(self) -> int:
        return len(self._hostvars)
