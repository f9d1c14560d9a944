# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What ``iptables-save`` prints (iptables(8), iptables-extensions(8)) as the model of ``firewall``. Pure."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Iterable

from ..model import MAX_U32
from .firewall import ACCEPT, DROP, RETURN, UNKNOWN, Chain, FilterRule, MarkWrite, Test, Value

VERDICTS = {"ACCEPT": ACCEPT, "DROP": DROP, "REJECT": DROP, "RETURN": RETURN}
# NF_IP_PRI_* of linux/netfilter_ipv4.h
PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
FIELDS = {
    "-s": "src", "-d": "dst", "-i": "iif", "-o": "oif", "-p": "protocol", "--sport": "sport", "--dport": "dport",
    "--sports": "sport", "--dports": "dport", "--ctstate": "state", "--state": "state",
}  # fmt: skip
NAT = ("DNAT", "REDIRECT")
# Options that go with a target and say nothing about the packet.
OF_TARGETS = ("--reject-with", "--to-destination", "--to-ports", "--to-source", "--log-prefix", "--log-level")
MARKS = ("--set-xmark", "--set-mark", "--and-mark", "--or-mark", "--xor-mark", "--restore-mark", "--save-mark")


def parse(saved: str, family: str, leave_out: tuple[str, ...] = ()) -> dict[tuple[str, str], Chain]:
    """The chains of ``iptables-save`` (family ipv4) or ``ip6tables-save`` (ipv6).

    Chains whose names begin with one of ``leave_out`` (ours) are left out; a jump to one of them leads nowhere.
    """
    chains: dict[tuple[str, str], Chain] = {}
    rules: dict[tuple[str, str], list[FilterRule]] = {}
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            name, policy = line[1:].split()[:2]
            if name.startswith(leave_out):
                continue
            hook = name.lower() if name in HOOKS else ""
            key = (_table(family, table), name)
            verdict = VERDICTS.get(policy, ACCEPT)
            chains[key] = Chain(key[0], name, family, hook, PRIORITIES.get(table, 0), verdict)
        elif line.startswith("-A "):
            words = shlex.split(line)
            rules.setdefault((_table(family, table), words[1]), []).append(_rule(words[2:], line))
    return {key: Chain(**{**chain.__dict__, "rules": tuple(rules.get(key, ()))}) for key, chain in chains.items()}


def _table(family: str, table: str) -> str:
    return f"{'iptables' if family == 'ipv4' else 'ip6tables'} {table}"


def _rule(words: list[str], line: str) -> FilterRule:
    tests: list[Test] = []
    target, back, negated = None, True, False
    options: dict[str, str] = {}
    index = 0
    while index < len(words):
        word = words[index]
        argument = words[index + 1] if index + 1 < len(words) else ""
        takes_one = bool(argument) and not argument.startswith("-") and argument != "!"
        if word == "!":
            negated, index = True, index + 1
            continue
        if word in ("-j", "-g"):
            target, back = argument, word == "-j"
        elif word in MARKS or word in OF_TARGETS or word in ("--nfmask", "--ctmask", "--mask"):
            options[word] = argument if takes_one else ""
        elif word in FIELDS:
            tests.append(_test(FIELDS[word], argument, negated))
        elif word not in ("-m", "--comment"):
            tests.append(UNKNOWN)
        index += 2 if takes_one else 1
        negated = False
    return _finished(tuple(tests), target, back, options, line)


def _finished(
    tests: tuple[Test, ...], target: str | None, back: bool, options: dict[str, str], line: str
) -> FilterRule:
    verdict = VERDICTS.get(target or "")
    writes = tuple(_writes(target, options)) if target in ("MARK", "CONNMARK") else ()
    called = None if verdict or writes else target
    return FilterRule(tests, verdict, called, back, writes, target in NAT, line)


def _test(field: str, argument: str, negated: bool) -> Test:
    values = tuple(_value(field, part) for part in argument.split(","))
    return UNKNOWN if None in values else Test(field, values, negated)


def _value(field: str, text: str) -> Value | None:
    try:
        if field in ("src", "dst"):
            return ipaddress.ip_network(text, strict=False)
        if field in ("sport", "dport"):
            low, _colon, high = text.partition(":")
            return int(low or 0), int(high or low or 65535)
    except ValueError:
        return None
    if text.endswith("+"):
        return None
    return "ipv6-icmp" if text == "icmpv6" else text.lower() if field == "state" else text


def _writes(target: str | None, options: dict[str, str]) -> Iterable[MarkWrite]:
    """--set-xmark VALUE/MASK changes the bits of the mask; a bare --restore-mark or --save-mark changes all."""
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
            yield MarkWrite("ct" if target == "CONNMARK" else "meta", bits)


def _mask(text: str | None) -> int:
    return int(text, 0) if text else MAX_U32
