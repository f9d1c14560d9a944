# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The host's packet filters, listed by nft and by each kind of iptables that is in use."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ...datapath.model import NAME as DATAPATH
from ...document.documents import Document
from ...host import files
from ...host.runner import MissingCommand, Runner
from ...marks import iptables, nft
from ..firewall import iptables_rules, nft_rules
from ..firewall.model import Ruleset
from . import proc
from .commands import CommandFailed, output_of


def read(run: Runner, proc_directory: str, documents: Iterable[Document]) -> dict[str, Any]:
    """Fields of Facts: ``ruleset`` (without our own rules), ``restores_forwarded``, and ``missing`` without nft."""
    documents = list(documents)
    listing = _nft_listing(run, any(document.services for document in documents))
    tables = {nft.table_name(document.owner) for document in documents}
    prefixes = tuple(iptables.prefix(document.owner) for document in documents)
    saved = _saved(run, proc_directory, listing is None or nft_rules.uses_iptables(listing))
    in_nft = {
        table
        for command, family, text in saved
        if "legacy" not in command
        for table in iptables_rules.tables(text, family)
    }
    chains = dict(nft_rules.parse(listing, tables, in_nft).chains) if listing is not None else {}
    for command, family, text in saved:
        chains.update(iptables_rules.parse(text, family, prefixes, command))
    restored = [f"{prefix}PRE" in text for prefix in prefixes for _command, _family, text in saved]
    hooks = nft_rules.hooks(listing or {}, tables)
    fields: dict[str, Any] = {"restores_forwarded": "prerouting" in hooks or any(restored)}
    if listing is None and not saved:
        marked = any(document.marks for document in documents)
        return {**fields, "missing": {"nftables": "marks cannot be set or checked"} if marked else {}}
    return {**fields, "ruleset": Ruleset(chains)}


def _nft_listing(run: Runner, kernel_services: bool) -> dict[str, Any] | None:
    """None if nft is not installed. The table of kernel services has thousands of buckets, so it is left out."""
    try:
        if not kernel_services:
            return _listed(run, "ruleset")
        # To list tables, nft 1.0.6 reads everything. One without chains does nothing.
        chains = [item["chain"] for item in _listed(run, "chains").get("nftables", ()) if "chain" in item]
        tables = sorted({(chain["family"], chain["table"]) for chain in chains if chain["table"] != DATAPATH})
        listings = [_listed(run, "table", *table) for table in tables]
    except MissingCommand:
        return None
    return {"nftables": [item for listing in listings for item in listing.get("nftables", ())]}


def _listed(run: Runner, *what: str) -> dict[str, Any]:
    listing = json.loads(_supported(run, ["nft", "-j", "list", *what]) or "{}")
    if not isinstance(listing, dict):
        raise TypeError(f"`nft -j list {' '.join(what)}` did not print a JSON object")
    return listing


def _saved(run: Runner, proc_directory: str, by_nft: bool) -> list[tuple[str, str, str]]:
    """(command, family, rules it prints); run only where there can be rules, because it loads kernel modules."""
    # Each entry: a command, and alternatives that print the same if it is not installed.
    commands = [(("iptables",), "ipv4"), (("ip6tables",), "ipv6")] if by_nft else []
    for command, family, name in (("iptables", "ipv4", "ip_tables"), ("ip6tables", "ipv6", "ip6_tables")):
        if (files.read(proc.net(proc_directory, f"{name}_names")) or "").strip():
            commands.append(((f"{command}-legacy", *(() if by_nft else (command,))), family))
    found = []
    for names, family in commands:
        for command in names:
            with suppress(MissingCommand):
                found.append((command, family, _supported(run, [f"{command}-save"])))
                break
    return found


def _supported(run: Runner, command: list[str]) -> str:
    """The output of a command that lists tables; empty if the kernel lacks such tables (EPROTONOSUPPORT ...)."""
    try:
        return output_of(run, command)
    except CommandFailed as error:
        # A table may go while others are listed.
        if any(words in str(error) for words in ("not supported", "No such file or directory")):
            return ""
        raise
