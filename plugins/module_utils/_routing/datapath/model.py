# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The nft table of the kernel services, as values: what its chains, sets and counters have to be. Pure.

A Table is compared with the live one by names and by the comments of its rules: each has a digest of what the rule
has to be, because what nft lists differs between its versions, and takes seconds for large tables.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Optional, Union

FAMILY = "inet"
NAME = "l4proxy_datapath"
# A rule's statements in the language of nft(8).
Content = Union[str, "Late"]
# (type, hook, priority) of a chain that a hook calls
Hook = Optional[tuple[str, str, int]]
# Expensive chains in one transaction.
AT_ONCE = 4
DROP = ["drop"]


@dataclass(frozen=True)
class Late:
    """A rule or a set that is expensive to make, and is made only to be written. ``key`` has all that it depends on."""

    key: str
    make: Callable[[], str]


@dataclass
class Chain:
    """A chain with its rules; ``hook`` if the kernel calls it."""

    hook: Hook = None
    rules: list[Content] = field(default_factory=list)

    @property
    def digests(self) -> list[str]:
        """The comment of each rule."""
        return [_digest(rule.key if isinstance(rule, Late) else rule) for rule in self.rules]


@dataclass
class Table:
    """What the table has to be: names of counters, sets ({name: declaration}) and chains. Empty: no table."""

    counters: set[str] = field(default_factory=set)
    sets: dict[str, Content] = field(default_factory=dict)
    chains: dict[str, Chain] = field(default_factory=dict)


@functools.lru_cache(maxsize=16384)
def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Live:
    """The live table. ``chains``: {name: (hook, comments of its rules)}. ``generation``: of nftables when it was read.

    ``exists`` is False without a table; ``disabled`` if somebody has set a flag of it, such as dormant.
    """

    exists: bool = False
    disabled: bool = False
    counters: frozenset[str] = frozenset()
    sets: frozenset[str] = frozenset()
    chains: Mapping[str, tuple[Hook, tuple[str, ...]]] = field(default_factory=dict)
    generation: bytes = b""


def transaction(live: Live, table: Table, later: Collection[str] = ()) -> str:
    """The commands of nft(8) that change the live table in one transaction; empty if it is as it should be.

    What stays the same is not touched: counters count on, sets keep their clients. Chains in ``later`` stay as they
    are; a new one drops packets.
    """
    if not table.chains:
        return f"delete table {FAMILY} {NAME}\n" if live.exists else ""
    changed = {name: chain for name, chain in table.chains.items() if not _is_same(live, name, chain)}
    new = [name for name in changed if name not in live.chains]
    changed = {name: chain for name, chain in changed.items() if name in new or name not in later}
    moved = [name for name in changed if name not in new and live.chains[name][0] != changed[name].hook]
    gone = [name for name in live.chains if name not in table.chains]
    added = [_command("add counter", name) for name in sorted(table.counters - live.counters)]
    added += [
        _command("add set", name, f"{{ {_text(table.sets[name])} }}") for name in sorted(table.sets.keys() - live.sets)
    ]
    stale = [_command("delete set", name) for name in sorted(live.sets - table.sets.keys())]
    stale += [_command("delete counter", name) for name in sorted(live.counters - table.counters)]
    if not (changed or gone or added or stale or live.disabled):
        return ""
    rules = [(name, rule) for name, chain in changed.items() for rule in (DROP if name in later else _rules(chain))]
    commands = [
        f"add table {FAMILY} {NAME}",
        *(_command("flush chain", name) for name in [*changed, *gone] if name in live.chains),
        *(_command("delete chain", name) for name in moved),
        *added,
        *(_command("add chain", name, _hook(changed[name])) for name in [*moved, *new]),
        *(_command("add rule", name, rule) for name, rule in rules),
        *(_command("delete chain", name) for name in gone),
        *stale,
    ]
    return "".join(f"{command}\n" for command in commands)


def steps(live: Live, table: Table) -> list[str]:
    """The transactions that change the live table: one, or else further ones for a few expensive chains each.

    A large transaction takes much longer than the same in parts, and nothing of it counts before its end. The first
    one has what open connections need; new ones of a service wait until its chain is written.
    """
    late = [
        name
        for name, chain in table.chains.items()
        if any(isinstance(rule, Late) for rule in chain.rules) and not _is_same(live, name, chain)
    ]
    # A live chain may go to another one that is to be deleted.
    if len(late) <= AT_ONCE or live.chains.keys() - table.chains.keys():
        whole = transaction(live, table)
        return [whole] if whole else []
    first = transaction(live, table, late)
    parts = [late[start : start + AT_ONCE] for start in range(0, len(late), AT_ONCE)]
    return [*filter(None, [first]), *("".join(_rewrite(name, table.chains[name]) for name in part) for part in parts)]


def _rewrite(name: str, chain: Chain) -> str:
    commands = [_command("flush chain", name), *(_command("add rule", name, rule) for rule in _rules(chain))]
    return "".join(f"{command}\n" for command in commands)


def _is_same(live: Live, name: str, chain: Chain) -> bool:
    return live.chains.get(name) == (chain.hook, tuple(chain.digests))


def _command(verb: str, name: str, more: str = "") -> str:
    return f"{verb} {FAMILY} {NAME} {name} {more}"


def _hook(chain: Chain) -> str:
    if not chain.hook:
        return ""
    kind, hook, priority = chain.hook
    return f"{{ type {kind} hook {hook} priority {priority}; policy accept; }}"


def _text(content: Content) -> str:
    return content.make() if isinstance(content, Late) else content


def _rules(chain: Chain) -> list[str]:
    texts = map(_text, chain.rules)
    return [f'{text} comment "{comment}"' for comment, text in zip(chain.digests, texts)]
