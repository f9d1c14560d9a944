# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read the options of policy_rule and policy_route, named as in ip(8), as a rule or a route.

A DocumentError has all errors, each with the name of the option.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from ..errors import DocumentError
from . import model, readers, schema
from .model import RESERVED_PROTOCOLS, Route, Rule

# option: key of a document's object, where they differ
RULE_NAMES = {"from": "src", "to": "dst", "ipproto": "ip_proto", "uidrange": "uid_range"}
# What a rule does with packets; what identifies a route.
ACTION_OPTIONS = ("action", "table", "suppress_prefixlength")
ROUTE_KEY = ("family", "table", "dst", "metric")
TABLES = {"main": 254, "default": 253, "local": 255}
_Object = TypeVar("_Object", Rule, Route)


def table(value: Any) -> int:
    """The number of a table that is given by number, or as main, default or local."""
    return readers.number(1, model.MAX_U32, f"a routing table ({', '.join(TABLES)}, or a number)")(
        TABLES.get(value, value)
    )


def own_table(value: Any) -> int:
    """The number of a table for routes. ValueError for table local, which belongs to the kernel."""
    number = table(value)
    if number == TABLES["local"]:
        raise ValueError("the table local belongs to the kernel; choose another table")
    return number


def ip_protocol(value: Any) -> int:
    return model.ip_protocol(int(value) if re.fullmatch("[0-9]{1,3}", str(value)) else value)


RULE = {**schema.RULE, "table": (table, False), "ip_proto": (ip_protocol, False)}
ROUTE = {**schema.ROUTE, "table": (own_table, True)}


def rule(options: dict[str, Any], present: bool = True) -> Rule:
    """``{"priority": 1100, "from": "198.18.0.121", "table": "20111", ...}`` -> Rule

    An absent rule is identified by its key: what it does with packets is ignored.
    """
    item = {RULE_NAMES.get(name, name): value for name, value in options.items() if value is not None}
    _split_mark(item)
    _add_family(item, ("src", "dst"))
    if not present:
        item = {
            **{name: value for name, value in item.items() if name not in ACTION_OPTIONS},
            "action": "lookup",
            "table": 254,
        }
    return _read(item, RULE, _check_rule, Rule, {key: name for name, key in RULE_NAMES.items()})


def route(options: dict[str, Any], present: bool = True) -> Route:
    """``{"dst": "default", "via": "198.18.0.11", "table": "20111", ...}`` -> Route; only the key of an absent one"""
    item = {name: value for name, value in options.items() if value is not None}
    _add_family(item, ("dst", "via", "src"))
    if not present:
        item = {**{name: item[name] for name in ROUTE_KEY if name in item}, "type": "unreachable"}
    return _read(item, ROUTE, schema.check_route, Route, {})


def _check_rule(values: dict[str, Any]) -> readers.Problems:
    """Like the check of a document, but a lookup may select every packet."""
    errors = schema.check_rule(values)
    return [error for error in errors if error[0] or values["action"] != "lookup"]


def _split_mark(item: dict[str, Any]) -> None:
    mark, slash, mask = str(item.get("fwmark", "")).partition("/")
    if slash:
        if "fwmask" in item:
            raise DocumentError(["fwmask: given twice, also in fwmark"])
        item.update(fwmark=mark, fwmask=mask)


def _add_family(item: dict[str, Any], names: Iterable[str]) -> None:
    """Add the family of the first address, if none is given; whether all addresses have it is checked later."""
    for name in names:
        if "family" not in item and item.get(name) not in (None, "default", "all"):
            try:
                item["family"] = model.family_of(item[name])
            except ValueError:
                item["family"] = "ipv4"  # any: the address is reported as invalid later
    if "family" not in item:
        raise DocumentError(["family: required, because no option contains an address"])


def _read(
    item: dict[str, Any], fields: Any, check: Any, make: Callable[..., _Object], names: dict[str, str]
) -> _Object:
    values, errors = readers.convert(item, fields)
    errors = errors or check(values)
    if errors:
        raise DocumentError(f"{names.get(name, name)}: {problem}" if name else problem for name, problem in errors)
    return make(**values)


def protocol(value: int) -> int:
    """The protocol number of single objects. DocumentError for the numbers of the kernel and of documents."""
    if value in RESERVED_PROTOCOLS:
        owner = RESERVED_PROTOCOLS[value]
        raise DocumentError([f"protocol: {value} is reserved for {owner}; choose another"])
    if not 1 <= value <= 255:
        raise DocumentError([f"protocol: {value} is not a protocol number (1-255)"])
    return value
