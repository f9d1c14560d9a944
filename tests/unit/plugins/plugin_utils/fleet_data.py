# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet as variables and facts, for the tests of the derivation: proxies a and a2, backends b, c and d."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Callable

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import DerivationError
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._fleet import Fleet

WEB = {
    "name": "web",
    "listen": ["0.0.0.0:80", "[::]:80"],
    "backends": [{"host": "b", "port": 8080}, {"host": "c", "port": 8080}, "d:8080"],
}

# Two services that the kernel forwards, or would if they did not share a port of b, and two proxies.
FAST = {
    "name": "fast",
    "datapath": "kernel",
    "listen": ["198.18.0.100:443", "[2001:db8::100]:443"],
    "backends": [{"host": "b", "port": 8443, "weight": 2}, {"host": "c", "port": 8443, "backup": True}],
}
OTHER = {**FAST, "name": "other", "listen": ["198.18.0.101:443"], "backends": ["b:8443"]}
BOTH = {"proxies": ["a", "a2"]}

NUMBERS = {"a": 11, "a2": 12, "b": 21, "c": 22, "d": 23}


def facts(number: int, **changes: Any) -> dict[str, Any]:
    """Facts of a host with one interface in 198.18.0.0/24 and 2001:db8::/64, as ansible.builtin.setup gives them."""
    ipv6 = [(f"2001:db8::{number}", "global"), (f"fe80::{number}", "link")]
    ethernet = {
        "device": "eth0",
        "macaddress": f"02:00:00:00:00:{number}",
        "ipv4": {"address": f"198.18.0.{number}", "prefix": "24", "netmask": "255.255.255.0"},
        "ipv6": [{"address": address, "prefix": "64", "scope": scope} for address, scope in ipv6],
        **changes,
    }
    loopback = {"device": "lo", "ipv4": {"address": "127.0.0.1", "prefix": "8"}}
    default = {"address": f"198.18.0.{number}", "interface": "eth0"}
    return {"default_ipv4": default, "eth0": ethernet, "lo": loopback}


def hostvars(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Variables of the whole fleet; ``changes`` adds to those of a host, or replaces its facts."""
    found = {name: {"ansible_host": name, "ansible_facts": facts(number)} for name, number in NUMBERS.items()}
    for name, values in changes.items():
        found[name].update(values)
    return copy.deepcopy(found)


def view(host: str, **changes: Any) -> dict[str, Any]:
    """The fleet as seen from a host, with one proxy unless ``changes`` says otherwise."""
    names = sorted(NUMBERS)
    return {"host": host, "inventory": names, "proxies": ["a"], "backends": ["b", "c", "d"], "known": {}, **changes}


def fleet(host: str, services: Sequence[Any] = (WEB,), variables: Any = None, **changes: Any) -> Fleet:
    """The fleet as seen from a host; ``changes`` as for :func:`view`."""
    return Fleet(list(services), view(host, **changes), variables or hostvars())


def errors(call: Callable[..., Any], *arguments: Any) -> list[str]:
    """The sentences with which a derivation is refused."""
    with pytest.raises(DerivationError) as caught:
        call(*arguments)
    return caught.value.errors


def two_links(number: int, name: str) -> dict[str, Any]:
    """Facts of a host that is in 198.18.0.0/24 with eth0 and in 198.18.2.0/24 with eth1."""
    second = {"address": f"198.18.2.{number}", "prefix": "24"}
    more = {"eth1": {"device": "eth1", "macaddress": f"02:00:00:00:02:{number}", "ipv4": second}}
    return {name: {"ansible_facts": {**facts(number), **more}}}
