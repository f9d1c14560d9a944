# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Converts the output of ``nft -j list ruleset`` (libnftables-json(5)) into the firewall model. Pure."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ...document.model import IP_PROTOCOLS, MAX_U32
from .model import (
    ACCEPT,
    DNAT,
    DROP,
    RETURN,
    SNAT,
    SYNPROXY,
    UNKNOWN,
    UNTRACK,
    Chain,
    FilterRule,
    MarkWrite,
    Ruleset,
    Test,
    Value,
)

FAMILIES = {"ip": "ipv4", "ip6": "ipv6", "inet": "inet"}
VERDICTS = {"accept": ACCEPT, "drop": DROP, "reject": DROP, "return": RETURN, "queue": None}
EFFECTS = {
    "masquerade": SNAT, "snat": SNAT, "dnat": DNAT, "redirect": DNAT, "notrack": UNTRACK, "synproxy": SYNPROXY,
}  # fmt: skip
# A rule can also overwrite an address without NAT.
OVERWRITES = {"saddr": SNAT, "daddr": DNAT}
PROTOCOL_NAMES = {number: name for name, number in IP_PROTOCOLS.items()}
# For an xt target nft prints only the name.
TARGETS = {
    "MASQUERADE": SNAT, "SNAT": SNAT, "DNAT": DNAT, "REDIRECT": DNAT, "CT": UNTRACK, "NOTRACK": UNTRACK,
    "SYNPROXY": SYNPROXY,
}  # fmt: skip
# iptables-nft keeps its chains in nft under these names; iptables-save prints their rules in full.
IPTABLES = re.compile(r"PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING")
# elements of each named set, by (table, name)
Sets = Mapping[Any, Any]
# (protocol, field) of a payload, or ("meta", key), or ("ct", key) → the packet's field
FIELDS: dict[tuple[Any, Any], str] = {
    ("ip", "saddr"): "src", ("ip6", "saddr"): "src", ("ip", "daddr"): "dst", ("ip6", "daddr"): "dst",
    ("tcp", "sport"): "sport", ("udp", "sport"): "sport", ("th", "sport"): "sport",
    ("tcp", "dport"): "dport", ("udp", "dport"): "dport", ("th", "dport"): "dport",
    ("ip", "protocol"): "protocol", ("ip6", "nexthdr"): "protocol", ("meta", "l4proto"): "protocol",
    ("meta", "iifname"): "iif", ("meta", "iif"): "iif", ("meta", "oifname"): "oif", ("meta", "oif"): "oif",
    ("meta", "nfproto"): "family", ("meta", "mark"): "mark", ("ct", "state"): "state", ("meta", "skuid"): "uid",
    ("ct", "status"): "status",
}  # fmt: skip


def parse(listing: Mapping[str, Any], ours: Iterable[str] = (), saved: Iterable[str] = ()) -> Ruleset:
    """All chains, without the tables named in ``ours`` and without iptables' chains in the tables ``saved``.

    Tables in ``saved`` (``ip nat``) are read from iptables-save instead.
    """
    items = listing.get("nftables", [])
    sets = {
        (_table(item["set"]), item["set"]["name"]): item["set"].get("elem", [])
        for item in items
        if "set" in item and "timeout" not in item["set"]
    }
    chains = {}
    for chain in (item["chain"] for item in items if "chain" in item):
        known = chain["family"] in FAMILIES and chain["table"] not in ours
        if known and not (_table(chain) in saved and IPTABLES.fullmatch(chain["name"])):
            rules = [item["rule"] for item in items if "rule" in item and _is_in(item["rule"], chain)]
            chains[_table(chain), chain["name"]] = Chain(
                table=_table(chain),
                name=chain["name"],
                family=FAMILIES[chain["family"]],
                hook=chain.get("hook", ""),
                priority=chain.get("prio", 0),
                policy=chain.get("policy", ACCEPT),
                type=chain.get("type", "filter"),
                rules=tuple(part for rule in rules for part in _rules(rule, sets)),
            )
    return Ruleset(chains)


def uses_iptables(listing: Mapping[str, Any]) -> bool:
    """Whether some chains belong to iptables-nft."""
    chains = [item["chain"] for item in listing.get("nftables", []) if "chain" in item]
    return any(chain["family"] in ("ip", "ip6") and IPTABLES.fullmatch(chain["name"]) for chain in chains)


def hooks(listing: Mapping[str, Any], tables: Iterable[str]) -> set[str]:
    """The hooks that have a chain of the named tables."""
    chains = [item["chain"] for item in listing.get("nftables", []) if "chain" in item]
    return {chain["hook"] for chain in chains if chain["table"] in tables and "hook" in chain}


def _table(item: Mapping[str, Any]) -> str:
    return f"{item['family']} {item['table']}"


def _is_in(rule: Mapping[str, Any], chain: Mapping[str, Any]) -> bool:
    return (rule["family"], rule["table"], rule["chain"]) == (chain["family"], chain["table"], chain["name"])


def _rules(rule: Mapping[str, Any], sets: Sets) -> Iterable[FilterRule]:
    """Yields one rule, or for a verdict map one for each element."""
    tests: list[Test] = []
    writes: list[MarkWrite] = []
    effect, to = "", ""
    text = _text(rule["expr"])
    for statement in rule["expr"]:
        ((name, body),) = statement.items()
        if name == "match":
            tests += [*_implied(body["left"]), _test(body, _table(rule), sets)]
        elif name == "mangle":
            writes += _writes(body)
            effect = effect or _overwrites(body)
        elif name == "xt" and isinstance(body, dict) and body.get("type") == "target":
            effect = TARGETS.get(body.get("name", ""), "")
        elif name == "vmap":
            yield from _mapped(body, tests, _table(rule), sets, text)
        elif name in EFFECTS:
            effect = EFFECTS[name]
            to = _destination(body)
            tests += _of_translation(body)
        elif name in ("limit", "xt", "quota", "connlimit") or (name == "set" and "op" not in body):
            tests.append(UNKNOWN)
        elif name in VERDICTS or name in ("jump", "goto"):
            yield _decided(statement, tests, writes, text)
            return
    if writes or effect:
        yield FilterRule(tuple(tests), writes=tuple(writes), effect=effect, to=to, text=text)


def _of_translation(body: Any) -> Iterable[Test]:
    """``snat ip to`` applies only to IPv4; with a map, an address that is not in it is not rewritten."""
    body = body if isinstance(body, dict) else {}
    if body.get("family") in FAMILIES:
        yield Test("family", (FAMILIES[body["family"]],))
    if isinstance(body.get("addr"), dict):
        yield UNKNOWN


def _destination(body: Any) -> str:
    address = body.get("addr") if isinstance(body, dict) else None
    return address if isinstance(address, str) else ""


def _overwrites(body: Mapping[str, Any]) -> str:
    payload = body["key"].get("payload", {}) if isinstance(body["key"], dict) else {}
    return OVERWRITES.get(payload.get("field", ""), "") if payload.get("protocol") in ("ip", "ip6") else ""


def _decided(statement: Mapping[str, Any], tests: list[Test], writes: list[MarkWrite], text: str) -> FilterRule:
    ((name, body),) = statement.items()
    if name in ("jump", "goto"):
        return FilterRule(tuple(tests), None, body["target"], name == "jump", tuple(writes), text=text)
    verdict = VERDICTS[name]
    return FilterRule((*tests, UNKNOWN) if name == "queue" else tuple(tests), verdict or DROP, text=text)


def _mapped(body: Mapping[str, Any], tests: list[Test], table: str, sets: Sets, text: str) -> Iterable[FilterRule]:
    pairs = body["data"].get("set", []) if isinstance(body["data"], dict) else []
    if not pairs:  # a named map, whose elements are not looked up
        yield FilterRule((*tests, UNKNOWN), DROP, text=text)
    for value, verdict in pairs:
        test = _test({"op": "==", "left": body["key"], "right": value}, table, sets)
        yield _decided(verdict, [*tests, *_implied(body["key"]), test], [], text)


def _implied(left: Any) -> list[Test]:
    """The conditions that nft omits: ``tcp dport`` applies only to TCP, ``ip saddr`` only to IPv4."""
    protocol = left.get("payload", {}).get("protocol") if isinstance(left, dict) else None
    if protocol in ("ip", "ip6"):
        return [Test("family", (FAMILIES[protocol],))]
    return [Test("protocol", (protocol,))] if protocol in ("tcp", "udp", "icmp") else []


def _test(match: Mapping[str, Any], table: str, sets: Sets) -> Test:
    field, mask = _field(match["left"])
    right = match["right"]
    if isinstance(right, str) and right.startswith("@"):
        right = {"set": sets[table, right[1:]]} if (table, right[1:]) in sets else None
    if field is None or right is None or match["op"] not in ("==", "in", "!="):
        return UNKNOWN
    values = tuple(value for element in _elements(right) for value in _values(field, element))
    if None in values or (mask is not None and not all(isinstance(value, tuple) for value in values)):
        return UNKNOWN
    return Test(field, values, match["op"] == "!=", mask)


def _field(left: Any) -> tuple[str | None, int | None]:
    """The packet's field and the mask for comparing it."""
    if not isinstance(left, dict):
        return None, None
    ((kind, body),) = left.items()
    if kind == "&" and isinstance(body[1], int):
        field, _mask = _field(body[0])
        return (field if field == "mark" else None), body[1]
    if kind == "payload":
        return FIELDS.get((body.get("protocol"), body.get("field"))), None
    if kind == "fib" and body.get("result") == "type" and body.get("flags") in (["saddr"], ["daddr"]):
        return ("src_fib" if body["flags"] == ["saddr"] else "dst_type"), None
    return (FIELDS.get((kind, body.get("key"))) if isinstance(body, dict) else None), None


def _elements(right: Any) -> list[Any]:
    if isinstance(right, dict) and "set" in right:
        return right["set"] if isinstance(right["set"], list) else [right["set"]]
    return right if isinstance(right, list) else [right]


def _values(field: str, value: Any) -> Iterable[Value | None]:
    """A value in the model's form, a range of addresses as networks; None if the model cannot express it."""
    if isinstance(value, dict) and "elem" in value:
        value = value["elem"].get("val")
    if field in ("src", "dst"):
        return _networks(value)
    if isinstance(value, dict):
        ends = value.get("range")
        return [(ends[0], ends[1]) if ends and all(isinstance(end, int) for end in ends) else None]
    if isinstance(value, int) and not isinstance(value, bool):
        # Without /etc/protocols (from Debian's netbase) nft prints a protocol as a number.
        return [PROTOCOL_NAMES.get(value) if field == "protocol" else (value, value)]
    return [value if isinstance(value, str) else None]


def _networks(value: Any) -> Iterable[Value | None]:
    try:
        if isinstance(value, dict) and "range" in value:
            return [*ipaddress.summarize_address_range(*map(ipaddress.ip_address, value["range"]))]
        if isinstance(value, dict) and "prefix" in value:
            value = f"{value['prefix']['addr']}/{value['prefix']['len']}"
        return [ipaddress.ip_network(value, strict=False)]
    except (ValueError, TypeError):
        return [None]


def _writes(body: Mapping[str, Any]) -> list[MarkWrite]:
    """The bits of a mark that ``set`` may change: all, unless a mask preserves some."""
    key = body["key"]
    for kind in ("meta", "ct"):
        if key == {kind: {"key": "mark"}}:
            value = body["value"] if isinstance(body["value"], int) else None
            return [MarkWrite(kind, _changed(key, body["value"]), value)]
    return []


def _changed(key: Any, value: Any) -> int:
    if value == key:
        return 0
    if isinstance(value, dict) and len(value) == 1:
        ((operator, parts),) = value.items()
        if operator in ("|", "^") and isinstance(parts[1], int):
            return _changed(key, parts[0]) | parts[1]
        if operator == "&" and isinstance(parts[1], int):
            return _changed(key, parts[0]) | (MAX_U32 & ~parts[1])
    return MAX_U32


def _text(statements: list[Any]) -> str:
    """The rule in short, so that an operator can find it."""
    words = []
    for statement in statements:
        ((name, body),) = statement.items()
        if name == "match":
            operator = [] if body["op"] in ("==", "in") else [body["op"]]
            words += [_word(body["left"]), *operator, _word(body["right"])]
        elif name == "mangle":
            words.append(f"{_word(body['key'])} set {_word(body['value'])}")
        elif name in ("jump", "goto"):
            words.append(f"{name} {body['target']}")
        elif name == "vmap":
            words += [_word(body["key"]), name]
        elif name not in ("counter", "log"):
            words.append(name)
    return " ".join(words)


def _word(value: Any) -> str:
    if isinstance(value, dict) and len(value) == 1:
        ((kind, body),) = value.items()
        if kind == "payload" and isinstance(body, dict) and "field" in body:
            return f"{body['protocol']} {body['field']}"
        if isinstance(body, dict) and "key" in body:
            return f"{kind} {body['key']}"
        if kind in ("|", "&", "^"):
            return f"({_word(body[0])} {kind} {_word(body[1])})"
    return f"{value:#x}" if isinstance(value, int) and value > 65535 else re.sub(r'["{}\[\]]', "", json.dumps(value))
