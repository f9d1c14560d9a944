# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``l4proxy doctor``: print findings as text or JSON, and return the exit status."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from . import registry
from .facts import gather
from .finding import FAIL, WARN, Finding, ordered

SCHEMA = 1
EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


def by_family(clients: Iterable[str]) -> dict[str, str]:
    """Sample clients by family. ValueError for a text that is no address, or for two clients of one family."""
    found: dict[str, str] = {}
    for text in clients:
        address = ipaddress.ip_address(text)
        family = f"ipv{address.version}"
        if family in found:
            raise ValueError(f"{found[family]} and {text} are both {family}; name only one client per family")
        found[family] = str(address)
    return found


def parse_port(text: str) -> tuple[str, int]:
    """``8080``, ``53/udp`` → (protocol, port). ValueError otherwise."""
    number, _slash, protocol = text.partition("/")
    if not re.fullmatch("[0-9]{1,5}", number) or not 1 <= int(number) <= 65535 or protocol not in ("", "tcp", "udp"):
        raise ValueError(f"{text!r} is not PORT, PORT/tcp or PORT/udp")
    return protocol or "tcp", int(number)


def to_dict(findings: Sequence[Finding]) -> dict[str, Any]:
    """The object that --json prints; the package's docstring describes it."""
    return {
        "schema": SCHEMA,
        "failed": count(findings, FAIL),
        "warned": count(findings, WARN),
        "findings": [finding.to_dict() for finding in ordered(findings)],
    }


def count(findings: Iterable[Finding], status: str) -> int:
    return sum(finding.status == status for finding in findings)


def run(
    sources: gather.Sources, clients: Iterable[str], ports: Iterable[str], as_json: bool, out: TextIO, err: TextIO
) -> int:
    """Examine the host and print the findings. Return 0 if nothing fails, 1 if something does, 2 for a wrong option."""
    try:
        facts = gather.gather(sources, None, by_family(clients), [parse_port(port) for port in ports])
    except ValueError as error:
        err.write(f"l4proxy doctor: {error}\n")
        return EXIT_USAGE
    findings = registry.examine(facts)
    if as_json:
        out.write(json.dumps(to_dict(findings)) + "\n")
    else:
        out.writelines(f"{finding.line}\n" for finding in ordered(findings))
    return EXIT_FAILED if count(findings, FAIL) else EXIT_OK
