# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Converts the output of ``iptables-save`` (iptables(8), iptables-extensions(8)) into the firewall model. Pure."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Iterable

from ...document.model import MAX_U32
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
    Test,
    Value,
)

VERDICTS = {"ACCEPT": ACCEPT, "DROP": DROP, "REJECT": DROP, "RETURN": RETURN}
# NF_IP_PRI_* of linux/netfilter_ipv4.h
PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
SOURCE_NAT_PRIORITY = 100
COMMANDS = {"ipv4": "iptables", "ipv6": "ip6tables"}
HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
FIELDS = {
    "-s": "src", "-d": "dst", "-i": "iif", "-o": "oif", "-p": "protocol", "--sport": "sport", "--dport": "dport",
    "--sports": "sport", "--dports": "dport", "--ctstate": "state", "--state": "state",
    "--src-type": "src_type", "--dst-type": "dst_type", "--uid-owner": "uid", "--mark": "mark",
    "--src-range": "src", "--dst-range": "dst", "--ctstatus": "status",
}  # fmt: skip
# iptables-save prints --syn as these --tcp-flags.
SYN = ["FIN,SYN,RST,ACK", "SYN"]
# Old kernels have SAME, router distributions have FULLCONENAT.
SOURCE_NAT = ("MASQUERADE", "SNAT", "SAME", "FULLCONENAT")
DESTINATION_NAT = ("DNAT", "REDIRECT")
MARKS = ("--set-xmark", "--set-mark", "--and-mark", "--or-mark", "--xor-mark", "--restore-mark", "--save-mark")


def parse(saved: str, family: str, ours: tuple[str, ...] = (), command: str = "") -> dict[tuple[str, str], Chain]:
    """The chains that ``iptables-save`` (family ipv4) or ``ip6tables-save`` (ipv6) prints, by (table, name).

    ``command`` names another command in findings. Chains whose names begin with one of ``ours`` are left out, and a
    jump to one of them has no effect.
    """
    chains: dict[tuple[str, str], Chain] = {}
    rules: dict[tuple[str, str], list[FilterRule]] = {}
    command = command or COMMANDS[family]
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            name, policy = line[1:].split()[:2]
            if name.startswith(ours):
                continue
            hook = name.lower() if name in HOOKS else ""
            key = (f"{command} {table}", name)
            chains[key] = Chain(
                key[0],
                name,
                family,
                hook,
                _priority(table, hook),
                VERDICTS.get(policy, ACCEPT),
                type="nat" if table == "nat" else "route" if (table, hook) == ("mangle", "output") else "filter",
            )
        elif line.startswith("-A "):
            words = shlex.split(line)
            rules.setdefault((f"{command} {table}", words[1]), []).append(_rule(words[2:], line))
    return {key: Chain(**{**chain.__dict__, "rules": tuple(rules.get(key, ()))}) for key, chain in chains.items()}


def tables(saved: str, family: str) -> set[str]:
    """The tables in the output, as nft names them: ``ip nat``."""
    return {f"{'ip' if family == 'ipv4' else 'ip6'} {line[1:]}" for line in saved.splitlines() if line.startswith("*")}


def _priority(table: str, hook: str) -> int:
    return SOURCE_NAT_PRIORITY if table == "nat" and hook in ("input", "postrouting") else PRIORITIES.get(table, 0)


def _rule(words: list[str], line: str) -> FilterRule:
    """iptables-save prints a rule's conditions first, then its target, then the target's options."""
    tests: list[Test] = []
    target, back, negated, match = None, True, False, ""
    options: dict[str, str] = {}
    index = 0
    while index < len(words):
        word = words[index]
        argument = words[index + 1] if index + 1 < len(words) else ""
        has_argument = bool(argument) and not argument.startswith("-") and argument != "!"
        if word == "!":
            negated, index = True, index + 1
            continue
        if word in ("-j", "-g"):
            target, back = argument, word == "-j"
        elif target:
            options[word] = argument if has_argument else ""
        elif word == "-m":
            match = argument
        elif word == "--tcp-flags":
            is_syn = words[index + 1 : index + 3] == SYN
            tests.append(Test("syn", ("yes",), negated) if is_syn else UNKNOWN)
            index += 1
        elif word == "--mark" and match == "connmark":
            tests.append(UNKNOWN)
        elif word in FIELDS:
            tests.append(_test(FIELDS[word], argument, negated))
        elif word != "--comment":
            tests.append(UNKNOWN)
        index += 2 if has_argument else 1
        negated = False
    return _finished(tuple(tests), target, back, options, line)


def _finished(
    tests: tuple[Test, ...], target: str | None, back: bool, options: dict[str, str], line: str
) -> FilterRule:
    verdict = VERDICTS.get(target or "")
    writes = tuple(_writes(target, options)) if target in ("MARK", "CONNMARK") else ()
    effect = _effect(target, line, options)
    called = None if verdict or writes or effect else target
    return FilterRule(tests, verdict, called, back, writes, effect, _destination(options), line)


def _destination(options: dict[str, str]) -> str:
    """The address in ``--to-destination`` (172.17.0.2, 172.17.0.2:80, [2001:db8::2]:80); empty for a range."""
    value = options.get("--to-destination", "")
    address = value[1:].partition("]")[0] if value.startswith("[") else value
    address = address.partition(":")[0] if address.count(":") == 1 else address
    return "" if "-" in address else address


def _effect(target: str | None, line: str, options: dict[str, str]) -> str:
    if target in SOURCE_NAT:
        return SNAT
    if target in DESTINATION_NAT:
        return DNAT
    if target == "NETMAP":  # rewrites what its hook rewrites
        return DNAT if line.startswith(("-A PREROUTING", "-A OUTPUT")) else SNAT
    if target == "SYNPROXY":
        return SYNPROXY
    return UNTRACK if target == "NOTRACK" or "--notrack" in options else ""


def _test(field: str, argument: str, negated: bool) -> Test:
    mask = None
    if field == "mark":
        argument, _slash, bits = argument.partition("/")
        mask = _mask(bits)
    values = tuple(value for part in argument.split(",") for value in _values(field, part))
    return UNKNOWN if None in values else Test(field, values, negated, mask)


def _values(field: str, text: str) -> Iterable[Value | None]:
    """A value in the model's form, a range of addresses as networks; None if the model cannot express it."""
    try:
        if field in ("src", "dst"):
            first, dash, last = text.partition("-")
            if dash:
                return [*ipaddress.summarize_address_range(ipaddress.ip_address(first), ipaddress.ip_address(last))]
            return [ipaddress.ip_network(text, strict=False)]
        if field in ("sport", "dport"):
            low, _colon, high = text.partition(":")
            return [(int(low or 0), int(high or low or 65535))]
        if field in ("mark", "uid"):
            low, _dash, high = text.partition("-")
            return [(int(low, 0), int(high or low, 0))]
    except (ValueError, TypeError):
        return [None]
    if field in ("iif", "oif") and text.endswith("+"):
        return [f"{text[:-1]}*"]
    words = field in ("state", "src_type", "dst_type", "status")
    return ["ipv6-icmp" if text == "icmpv6" else text.lower() if words else text]


def _writes(target: str | None, options: dict[str, str]) -> Iterable[MarkWrite]:
    """--set-xmark VALUE/MASK changes the bits of MASK; --restore-mark and --save-mark without a mask change all."""
    for name, argument in options.items():
        if name not in MARKS:
            continue
        if name == "--restore-mark":
            yield MarkWrite("meta", _mask(options.get("--nfmask") or options.get("--mask")))
        elif name == "--save-mark":
            yield MarkWrite("ct", _mask(options.get("--ctmask") or options.get("--mask")))
        else:
            value, _slash, mask = argument.partition("/")
            bits = _mask(mask) if name in ("--set-xmark", "--set-mark") else _mask(value)
            bits = MAX_U32 & ~bits if name == "--and-mark" else bits
            known = int(value, 0) if name in ("--set-xmark", "--set-mark") else None
            yield MarkWrite("ct" if target == "CONNMARK" else "meta", bits, known)


def _mask(text: str | None) -> int:
    return int(text, 0) if text else MAX_U32
