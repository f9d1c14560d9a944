# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options of policy_rule and policy_route, in ip(8)'s words, read as a rule and a route.

What is wrong is told by the names of the options, all of it at once, as a DocumentError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from ..errors import DocumentError
from . import model, schema
from .model import RESERVED_PROTOCOLS, Route, Rule

# option: key of a document's object, where they differ
RULE_NAMES = {"from": "src", "to": "dst", "ipproto": "ip_proto", "uidrange": "uid_range"}
# What a rule does, and what a route is known by.
DEEDS = ("action", "table", "suppress_prefixlength")
ROUTE_KEY = ("family", "table", "dst", "metric")
TABLES = {"main": 254, "default": 253, "local": 255}
_Object = TypeVar("_Object", Rule, Route)


def table(value: Any) -> int:
    """A table by number, or main, default, local."""
    return schema.number(1, model.MAX_U32, f"a routing table ({', '.join(TABLES)}, or a number)")(
        TABLES.get(value, value)
    )


def own_table(value: Any) -> int:
    """A table that routes can be put into: not the one that the kernel keeps for itself."""
    found = table(value)
    if found == TABLES["local"]:
        raise ValueError("routes in table local are the kernel's own; choose another table")
    return found


def ip_protocol(value: Any) -> int:
    return model.ip_protocol(int(value) if re.fullmatch("[0-9]{1,3}", str(value)) else value)


RULE = {**schema.RULE, "table": (table, False), "ip_proto": (ip_protocol, False)}
ROUTE = {**schema.ROUTE, "table": (own_table, True)}


def rule(options: dict[str, Any], present: bool = True) -> Rule:
    """``{"priority": 1100, "from": "198.18.0.121", "table": "20111", ...}`` → Rule

    One that is to be absent is found by its key: what it does with packets need not be said.
    """
    item = {RULE_NAMES.get(name, name): value for name, value in options.items() if value is not None}
    _split_mark(item)
    _add_family(item, ("src", "dst"))
    if not present:
        item = {**{name: value for name, value in item.items() if name not in DEEDS}, "action": "lookup", "table": 254}
    return _read(item, RULE, _check_rule, Rule, {key: name for name, key in RULE_NAMES.items()})


def route(options: dict[str, Any], present: bool = True) -> Route:
    """``{"dst": "default", "via": "198.18.0.11", "table": "20111", ...}`` → Route; one to be absent by its key alone"""
    item = {name: value for name, value in options.items() if value is not None}
    _add_family(item, ("dst", "via", "src"))
    if not present:
        item = {**{name: item[name] for name in ROUTE_KEY if name in item}, "type": "unreachable"}
    return _read(item, ROUTE, schema.check_route, Route, {})


def _check_rule(values: dict[str, Any]) -> schema.Problems:
    """As in a document, but a lookup of a table may concern every packet."""
    wrong = schema.check_rule(values)
    return [found for found in wrong if found[0] or values["action"] != "lookup"]


def _split_mark(item: dict[str, Any]) -> None:
    mark, slash, mask = str(item.get("fwmark", "")).partition("/")
    if slash:
        if "fwmask" in item:
            raise DocumentError(["fwmask: is given twice, in fwmark as well"])
        item.update(fwmark=mark, fwmask=mask)


def _add_family(item: dict[str, Any], names: Iterable[str]) -> None:
    """The family that the addresses have, where none is named; which disagreement there is, the checks tell."""
    for name in names:
        if "family" not in item and item.get(name) not in (None, "default", "all"):
            try:
                item["family"] = model.family_of(item[name])
            except ValueError:
                item["family"] = "ipv4"  # the address is told to be none
    if "family" not in item:
        raise DocumentError(["family: required, since no address tells it"])


def _read(
    item: dict[str, Any], fields: Any, check: Any, make: Callable[..., _Object], names: dict[str, str]
) -> _Object:
    values, wrong = schema.convert(item, fields)
    wrong = wrong or check(values)
    if wrong:
        raise DocumentError(f"{names.get(name, name)}: {problem}" if name else problem for name, problem in wrong)
    return make(**values)


def protocol(value: int) -> int:
    """The number of an owner that may have single objects. DocumentError for the kernel's and those of documents."""
    if value in RESERVED_PROTOCOLS:
        owner = RESERVED_PROTOCOLS[value]
        raise DocumentError(
            [f"protocol: {value} is that of {owner}, whose objects are not managed here; choose another"]
        )
    if not 1 <= value <= 255:
        raise DocumentError([f"protocol: {value} is not the number of an owner (1-255)"])
    return value
