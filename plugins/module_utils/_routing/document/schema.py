# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The schema of state documents: the keys of each kind of object, and how they are read, checked and written."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Callable

from . import model, service_schema
from .announced import Announced
from .kernel_service import KernelService
from .model import (
    FAMILIES,
    MAIN,
    MARK_ENGINES,
    MAX_U32,
    ROUTE_TYPES,
    RULE_ACTIONS,
    SCOPES,
    Address,
    Mark,
    Route,
    Rule,
    Sysctl,
)
from .readers import (
    COMMON,
    Fields,
    Problems,
    boolean,
    check_retiring,
    list_of,
    number,
    one_of,
    some,
    span,
    string,
    text,
)

# Local is at 0 and main at 32766 (ip-rule(8)); a rule outside of that range would shadow one or never be reached.
PRIORITIES = (1, 32765)
# linux/rtnetlink.h: up to 192 belong to the kernel and to routing daemons.
PROTOCOLS = (193, 255)
RESERVED_TABLES = {0: "unspec", 253: "default", MAIN: "main", 255: "local"}
# IFNAMSIZ is 16 including the terminating zero; the kernel refuses blanks and slashes (dev_valid_name).
LINK_NAME = re.compile(r"[^\s/:]{1,15}")


def link(value: Any) -> str:
    if not isinstance(value, str) or not LINK_NAME.fullmatch(value) or value in (".", ".."):
        raise ValueError(f"{value!r} is not the name of a network interface")
    return value


def table(value: Any) -> int:
    """The number of a table of our own."""
    table_number = number(1, MAX_U32, "a routing table")(value)
    if table_number in RESERVED_TABLES:
        raise ValueError(f"{table_number} is the reserved table {RESERVED_TABLES[table_number]}; choose another")
    return table_number


def looked_up_table(value: Any) -> int:
    """The number of a table of our own, or of main; ``check_document_rule`` says which rules may look main up."""
    return MAIN if value in (MAIN, str(MAIN)) else table(value)


ports = span(1, 65535, "a port", "ports")
# 2**32-1 means "no user" (uid_valid in linux/uidgid.h).
users = span(0, MAX_U32 - 1, "a user's number", "users")


def served_port(value: Any) -> str:
    model.served_port(str(value))
    return str(value)


def sysctl_value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"{value!r} is not a number or a string")
    return model.sysctl_value(value)


owner = text(r"[a-z][a-z0-9_]{0,31}", "an owner: a lower-case word of up to 32 letters, digits and _")
protocol = number(*PROTOCOLS, "a protocol number for an owner")
mark_engine = one_of(("auto", *MARK_ENGINES))

forwarding = list_of(one_of(FAMILIES))

RULE: Fields = {
    "family": (one_of(FAMILIES), True),
    "priority": (number(*PRIORITIES, "a rule priority between local and main"), True),
    "action": (one_of(RULE_ACTIONS), True),
    "table": (looked_up_table, False),
    "src": (string(model.prefix), False),
    "dst": (string(model.prefix), False),
    "iif": (link, False),
    "oif": (link, False),
    "fwmark": (number(1, MAX_U32, "a mark"), False),
    "fwmask": (number(1, MAX_U32, "a mask"), False),
    "ip_proto": (model.ip_protocol, False),
    "sport": (ports, False),
    "dport": (ports, False),
    "uid_range": (users, False),
    "suppress_prefixlength": (number(0, 128, "the length of a prefix"), False),
    **COMMON,
}
ROUTE: Fields = {
    "family": (one_of(FAMILIES), True),
    "table": (table, True),
    "dst": (string(model.prefix), True),
    "type": (one_of(ROUTE_TYPES), False),
    "via": (string(model.address), False),
    "dev": (link, False),
    "src": (string(model.address), False),
    "metric": (number(0, MAX_U32, "a metric"), False),
    "scope": (one_of(SCOPES), False),
    "onlink": (boolean, False),
    # RFC 791: every link carries 68 bytes. RTAX_MTU and RTAX_ADVMSS are bounded by fib_metrics.c.
    "mtu": (number(68, 65535 - 15, "an MTU in bytes"), False),
    "advmss": (number(1, 65535 - 40, "a segment size in bytes"), False),
    "fallback": (some(string(model.address), "addresses of other proxies"), False),
    **COMMON,
}
MARK: Fields = {
    # The name becomes an nft comment, which has at most 128 bytes.
    "name": (
        text(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}", "a mark's name: letters, digits, '.', ':', '_', '-', up to 100"),
        True,
    ),
    "id": (number(1, MAX_U32, "a mark"), True),
    "mask": (number(1, MAX_U32, "a mask"), True),
    "mac": (string(model.mac), False),
    # Both engines treat other characters as wildcards or quotes.
    "iif": (text(r"[A-Za-z0-9_.-]{1,15}", "the name of a network interface: letters, digits, '.', '_', '-'"), False),
    "transparent": (boolean, False),
    "via": (some(string(model.address), "the proxy's addresses"), False),
    "conntrack": (boolean, False),
    "last_sender": (some(served_port, "ports such as tcp/8080"), False),
    **COMMON,
}
ADDRESS: Fields = {
    "family": (one_of(FAMILIES), True),
    # People often add a prefix length; ours is always /32 or /128.
    "address": (string(model.host_address), True),
    "dev": (link, True),
    **COMMON,
}
ANNOUNCED: Fields = {name: ADDRESS[name] for name in ("family", "address", *COMMON)}
SYSCTL: Fields = {"name": (string(model.sysctl_name), True), "value": (sysctl_value, True), **COMMON}


def _one_family(values: dict[str, Any], names: tuple[str, ...]) -> Problems:
    return [
        (name, f"{values[name]} is not {values['family']}")
        for name in names
        if values.get(name, "default") != "default" and model.family_of(values[name]) != values["family"]
    ]


def check_rule(values: dict[str, Any]) -> Problems:
    """Errors in the combination of a rule's keys."""
    wrong = _one_family(values, ("src", "dst"))
    if values["action"] == "lookup" and "table" not in values:
        wrong.append(("table", "required with action lookup"))
    if values["action"] != "lookup" and "table" in values:
        wrong.append(("table", f"has no meaning with action {values['action']}"))
    if "fwmask" in values and "fwmark" not in values:
        wrong.append(("fwmask", "needs fwmark"))
    wrong += _inside("fwmark", values.get("fwmark", 0), values.get("fwmask", MAX_U32))
    if ("sport" in values or "dport" in values) and values.get("ip_proto") not in (6, 17):
        wrong.append(("ip_proto", "sport and dport need tcp or udp"))
    icmp = {"ipv4": "ipv6-icmp", "ipv6": "icmp"}[values["family"]]
    if values.get("ip_proto") == model.IP_PROTOCOLS[icmp]:
        wrong.append(("ip_proto", f"{icmp} never occurs in {values['family']}"))
    if "suppress_prefixlength" in values and values["action"] != "lookup":
        wrong.append(("suppress_prefixlength", f"has no meaning with action {values['action']}"))
    if values.get("suppress_prefixlength", 0) > 32 and values["family"] == "ipv4":
        wrong.append(("suppress_prefixlength", f"{values['suppress_prefixlength']} is longer than any ipv4 prefix"))
    selectors = {values.get(name, "default") for name in RULE if name not in NO_SELECTORS}
    if selectors == {"default"} and "suppress_prefixlength" not in values:
        wrong.append(("", "has no selector and would match every packet of the host"))
    return wrong + check_retiring(values)


NO_SELECTORS = ("family", "priority", "action", "table", "fwmask", "suppress_prefixlength", "retiring", "retire_at")


def check_document_rule(values: dict[str, Any]) -> Problems:
    """Errors in the combination of the keys of a document's rule: the same, and those of a rule that looks up main."""
    wrong = check_rule(values)
    if values.get("table") == MAIN and "fwmark" not in values:
        wrong.append(("table", f"{MAIN} is the reserved table main, which only a rule with fwmark may look up"))
    return wrong


def check_route(values: dict[str, Any]) -> Problems:
    """Errors in the combination of a route's keys."""
    wrong = _one_family(values, ("dst", "via", "src"))
    kind = values.get("type", "unicast")
    if kind == "unicast" and not {"via", "dev"} & set(values):
        wrong.append(("via", "a unicast route needs via or dev"))
    if kind != "unicast":
        useless = {"via", "fallback", "onlink", "mtu", "advmss"} | (set() if kind == "local" else {"src", "dev"})
        wrong += [(name, f"has no meaning with type {kind}") for name in sorted(useless & set(values)) if values[name]]
    if values.get("via", "").startswith("fe80:") and "dev" not in values:
        wrong.append(("dev", "required with a link-local via"))
    if values.get("onlink") and not {"via", "dev"} <= set(values):
        wrong.append(("onlink", "needs via and dev"))
    if values.get("fallback") and "via" not in values:
        wrong.append(("fallback", "needs via"))
    wrong += [
        ("fallback", f"{each} is not {values['family']}")
        for each in values.get("fallback", ())
        if model.family_of(each) != values["family"]
    ]
    return wrong + _check_route_numbers(values) + check_retiring(values)


def _check_route_numbers(values: dict[str, Any]) -> Problems:
    wrong = []
    if values["family"] == "ipv6" and values.get("metric") == 0:
        wrong.append(("metric", "the kernel turns 0 into 1024 for IPv6; leave it out"))
    if values["family"] == "ipv6" and values.get("scope", "global") != "global":
        wrong.append(("scope", f"IPv6 routes have no scope {values['scope']}; leave it out"))
    if values["family"] == "ipv6" and values.get("mtu", 1280) < 1280:
        wrong.append(("mtu", f"{values['mtu']} is below 1280, which every IPv6 link carries (RFC 8200)"))
    return wrong


def check_address(values: dict[str, Any]) -> Problems:
    """Errors in the combination of an address's keys."""
    wrong = _one_family(values, ("address",))
    address = ipaddress.ip_address(values["address"])
    if address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local:
        wrong.append(("address", f"{address} cannot be assigned to a host"))
    return wrong + check_retiring(values)


def check_mark(values: dict[str, Any]) -> Problems:
    """Errors in the combination of a mark's keys."""
    wrong = _inside("id", values["id"], values["mask"])
    matches = [name for name in ("mac", "iif", "transparent") if values.get(name)]
    if len(matches) > 1:
        wrong.append(
            (matches[1], f"cannot be combined with {matches[0]}; a mark matches by one of mac, iif, transparent")
        )
    # A retiring mark has passed its MAC on to the mark that replaces it.
    if not matches and "via" not in values and not values.get("retiring"):
        wrong.append(("via", "required, unless mac, iif or transparent says which packets are marked"))
    if values.get("transparent"):
        useless = [name for name in ("via", "conntrack", "last_sender") if values.get(name)]
        wrong += [(name, "has no meaning with transparent: it marks packets, not connections") for name in useless]
    if values.get("last_sender") and "via" not in values:
        wrong.append(("last_sender", "needs via: the proxies through which replies may leave"))
    return wrong + check_retiring(values)


def _inside(name: str, mark: int, mask: int) -> Problems:
    outside = mark & ~mask
    return [(name, f"{mark:#x} has bits outside its mask {mask:#x}")] if outside else []


def make_mark(mac: Any = None, **values: Any) -> Mark:
    return Mark(macs=(mac,) if mac else (), **values)


def dump(value: Rule | Route | Mark | Sysctl | Address | Announced | KernelService) -> dict[str, Any]:
    """An object as JSON data; unused keys are omitted, except where null has a meaning (dev, mac)."""
    fields, finish = DUMPS[type(value)]
    data = {name: getattr(value, name) for name in fields if name not in COMMON and hasattr(value, name)}
    data = finish(value, {name: part for name, part in data.items() if part is not None})
    if value.retiring:
        data["retiring"] = True
    if value.retire_at is not None:
        data["retire_at"] = value.retire_at
    return data


def _dump_rule(_value: Rule, data: dict[str, Any]) -> dict[str, Any]:
    for name in {"sport", "dport", "uid_range"} & set(data):
        data[name] = "-".join(map(str, sorted(set(data[name]))))
    if "ip_proto" in data:
        data["ip_proto"] = _protocol(data["ip_proto"])
    return data


def _dump_route(value: Route, data: dict[str, Any]) -> dict[str, Any]:
    usual = {
        "metric": model.DEFAULT_METRIC[value.family],
        "scope": model.default_scope(value.family, value.type, value.via),
        "onlink": False,
    }
    data = {name: part for name, part in data.items() if name not in usual or part != usual[name]}
    data |= {"fallback": list(value.fallback)} if data.pop("fallback") else {}
    return {**data, "dev": None} if value.type == "unicast" and value.dev is None else data


def _dump_mark(value: Mark, data: dict[str, Any]) -> dict[str, Any]:
    kept = {name: part for name, part in data.items() if part and name not in ("conntrack", "via", "last_sender")}
    if value.follows_neighbour:
        kept["mac"] = value.macs[0] if len(value.macs) == 1 else None
    kept |= {name: list(getattr(value, name)) for name in ("via", "last_sender") if getattr(value, name)}
    return kept if value.conntrack or value.transparent else {**kept, "conntrack": False}


def _dump_sysctl(_value: Sysctl, data: dict[str, Any]) -> dict[str, Any]:
    return data


def _dump_address(_value: Address | Announced, data: dict[str, Any]) -> dict[str, Any]:
    return data


DUMPS: dict[type, tuple[Fields, Callable[[Any, dict[str, Any]], dict[str, Any]]]] = {
    Rule: (RULE, _dump_rule),
    Route: (ROUTE, _dump_route),
    Mark: (MARK, _dump_mark),
    Address: (ADDRESS, _dump_address),
    Announced: (ANNOUNCED, _dump_address),
    Sysctl: (SYSCTL, _dump_sysctl),
    KernelService: (service_schema.SERVICE, service_schema.finish),
}


def _protocol(value: int) -> str | int:
    name = model.ip_protocol_name(value)
    return value if name == str(value) else name
