# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Read the live table over netlink, and change it through nft.

nft would list every bucket, which takes seconds for 100 services; the kernel's messages have names and comments only.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

from ..errors import MissingPackage, RoutingError
from ..host.runner import MissingCommand, Runner
from ..netlink.messages import Netlink, attribute, attributes
from .model import NAME, Hook, Live, Table, steps

NETLINK_NETFILTER = 12
# nfnetlink.h and nf_tables.h of linux/netfilter
NFNL_SUBSYS_NFTABLES = 10 << 8
GETTABLE, GETCHAIN, GETRULE, GETSET, GETGEN, GETOBJ = (NFNL_SUBSYS_NFTABLES | kind for kind in (1, 4, 7, 10, 16, 19))
NFPROTO_INET = 1
NFGENMSG = struct.pack("=BBH", NFPROTO_INET, 0, 0)
NFT_TABLE_F_DORMANT = 0x1
NFT_SET_ANONYMOUS = 0x1
NFT_OBJECT_COUNTER = 1
NFTNL_UDATA_RULE_COMMENT = 0
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
ACCEPT = struct.pack(">I", 1)
ATTEMPTS = 10


class Datapath:
    """The table of the calling thread's network namespace."""

    def __init__(self, runner: Runner):
        self._run = runner

    def read(self) -> Live:
        """The live table. RoutingError if it cannot be read."""
        try:
            with Netlink(NETLINK_NETFILTER) as netlink:
                for _attempt in range(ATTEMPTS):
                    live = _read(netlink, _generation(netlink))
                    if live.generation == _generation(netlink):
                        return live
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP):
                return Live()  # no such table, or a kernel that has not loaded nftables
            raise RoutingError(f"cannot read table {NAME} of nftables: {error}") from error
        raise RoutingError(f"cannot read table {NAME} of nftables: other processes keep changing nftables")

    def write(self, live: Live, table: Table) -> bool:
        """Change what differs; return whether anything did. ``live`` must be current.

        That is one transaction, or a few if many chains are expensive: see model.steps. MissingPackage without nft;
        RoutingError if one fails, and then none of it is changed.
        """
        commands = steps(live, table)
        for transaction in commands:
            try:
                done = self._run(["nft", "-f", "-"], transaction)
            except MissingCommand as error:
                raise MissingPackage("nftables", "services with `datapath: kernel` need the command nft") from error
            if done.code:
                reason = (done.stderr or done.stdout).strip() or f"exit status {done.code}"
                raise RoutingError(f"nft -f -, to change table {NAME}: {reason}")
        return bool(commands)


def _generation(netlink: Netlink) -> bytes:
    return bytes(dict(attributes(netlink.get(GETGEN, NFGENMSG)[len(NFGENMSG) :])).get(1, b""))


def dump(netlink: Netlink, kind: int, *filters: bytes) -> Iterator[dict[int, bytes]]:
    """The attributes of all objects of a kind in our table."""
    name = NAME.encode() + b"\0"
    for body in netlink.dump(kind, NFGENMSG + attribute(1, name) + b"".join(filters)):
        found = dict(attributes(body[len(NFGENMSG) :]))
        if found.get(1) == name:
            yield found


def _read(netlink: Netlink, generation: bytes) -> Live:
    tables = list(dump(netlink, GETTABLE))
    if not tables:
        return Live(generation=generation)
    comments: dict[str, list[str]] = {}
    for rule in dump(netlink, GETRULE):
        comments.setdefault(text(rule[2]), []).append(_comment(rule.get(7, b"")))
    sets = [text(one[2]) for one in dump(netlink, GETSET) if not _number(one.get(3, b"")) & NFT_SET_ANONYMOUS]
    chains = {
        text(chain[3]): (_hook(chain), tuple(comments.get(text(chain[3]), ()))) for chain in dump(netlink, GETCHAIN)
    }
    counters = [text(counter[2]) for counter in dump(netlink, GETOBJ)]
    dormant = _number(tables[0].get(2, b"")) & NFT_TABLE_F_DORMANT
    return Live(True, bool(dormant), frozenset(counters), frozenset(sets), chains, generation)


def _hook(chain: dict[int, bytes]) -> Hook:
    """(type, hook, priority); a policy other than accept is no hook of ours."""
    if 4 not in chain:
        return None
    found = dict(attributes(chain[4]))
    (priority,) = struct.unpack(">i", found[2])
    kind = text(chain[7]) if chain.get(5) == ACCEPT else "other policy"
    return (kind, HOOKS[_number(found[1])], priority)


def _comment(userdata: bytes) -> str:
    """The comment in what nft stores with a rule: (type, length, value) of a byte, a byte and a string."""
    start = 0
    while start + 2 <= len(userdata):
        kind, length = userdata[start], userdata[start + 1]
        if kind == NFTNL_UDATA_RULE_COMMENT:
            return text(userdata[start + 2 : start + 2 + length])
        start += 2 + length
    return ""


def text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big")
