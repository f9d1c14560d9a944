# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Marks as chains in the table mangle of iptables, for both families; for iptables-nft and iptables-legacy.

    INPUT, FORWARD      -> L4PROXY_OWNER_IN, _FWD   packet from a MAC or interface, while our bits of the connection's
                                                    mark are zero: set them to the id. In _IN: drop the FIN of a
                                                    connection that conntrack does not know; copy our bits of the
                                                    connection's mark to the packet, for the accepted socket
    PREROUTING, OUTPUT  -> L4PROXY_OWNER_PRE, _OUT  reply: copy our bits of the connection's mark to the packet. In
                                                    _OUT before that: a connection gets our bits of its socket
    POSTROUTING         -> L4PROXY_OWNER_POST       drop a reply that lost its mark, or leaves through another
                                                    interface than that of its proxy
    L4PROXY_OWNER_MEMO  (sees no packets)           the marks as comments, from which they are read back

Ports in ``last_sender`` are treated as in ``nft``: _IN and _FWD set the connection's mark again, and in _OUT it comes
before the mark of the accepted socket.

iptables cannot match the next hop: only the unreachable rule stops a reply that leaves through the proxy's interface
but to a router. iptables also cannot clear the bits of others on a SYN after all filters, as nftables does, so an
accepted socket keeps those as well. Only our bits are changed: every rule matches first and sets under the mask, and
none restores a complete mark. Our jumps come first in their chains, so that no ACCEPT of another rule precedes them.
"""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Iterable

from ..document.model import Mark, Observed
from ..errors import MissingPackage, RoutingError
from ..host.runner import MissingCommand, Runner
from . import iptables_listing
from .iptables_listing import HOOKS, MEMO, Chains, Listing
from .nft import SERVER_PORTS, moving_ports

COMMANDS = {"ipv4": "iptables", "ipv6": "ip6tables"}
# Seconds to wait for the lock of iptables-legacy; iptables-nft has none and accepts the option.
LOCK_WAIT = 10
# XT_EXTENSION_MAXNAMELEN (29 with the terminating zero) limits a chain's name: "L4PROXY_" + owner + "_POST".
MAX_OWNER_LENGTH = 14


def prefix(owner: str) -> str:
    """The prefix of the names of an owner's chains; a long owner is shortened and gets a checksum."""
    if len(owner) > MAX_OWNER_LENGTH:
        owner = f"{owner[:7]}_{hashlib.sha256(owner.encode()).hexdigest()[:6]}"
    return f"L4PROXY_{owner.upper()}_"


def render(owner: str, marks: Iterable[Mark], family: str) -> Chains:
    """The owner's chains with their rules as iptables-save lists them; empty without marks."""
    marks = sorted(marks, key=lambda mark: mark.order)
    chains: Chains = {}
    all_bits = functools.reduce(operator.or_, (mark.mask for mark in marks), 0)
    tracked = [mark for mark in marks if mark.conntrack]
    rules = [*_replies_to_last_senders(tracked, all_bits), *map(_of_accepted_socket, tracked)]
    rules += [rule for mark in marks for rule in (*_rules(mark, all_bits), *_guards(mark, marks, family), *_memo(mark))]
    for suffix, words in rules:
        chains.setdefault(prefix(owner) + suffix, []).append(" ".join(words))
    return chains


def _rules(mark: Mark, all_bits: int) -> Iterable[tuple[str, list[str]]]:
    """(chain, rule) of the rules that mark packets and connections; ``all_bits`` has the bits of all our marks."""
    ours, none = _under(mark.id, mark), _under(0, mark)
    unmarked = ["-m", "connmark", "--mark", f"0x0/{all_bits:#x}"]
    name = ["-m", "comment", "--comment", mark.name]
    set_packet = [*name, "-j", "MARK", "--set-xmark", f"{mark.id:#x}/{mark.mask:#x}"]
    set_connection = _set_connection(mark)
    for sender in _senders(mark):
        if mark.conntrack:
            fresh = [*_direction("ORIGINAL"), *unmarked]
            yield from ((chain, [*sender, *fresh, *set_connection]) for chain in ("IN", "FWD"))
            served = ["-p", "udp", "-m", "udp", "--dport", ":".join(map(str, SERVER_PORTS))]
            yield "IN", [*sender, *served, *_direction("REPLY"), *unmarked, *set_connection]
            yield "IN", _stale(sender, name)
            for protocol, port in moving_ports(mark):
                continues = ["--tcp-flags", "SYN,ACK", "ACK"] if protocol == "tcp" else []
                transport, asked = ["-p", protocol, "-m", protocol], ["-m", "conntrack", "--ctorigdstport", str(port)]
                yield "IN", [*sender, *transport, "--dport", str(port), *continues, *set_connection]
                published = [*sender, *transport, *continues] if continues else [*sender, "-p", protocol]
                yield "FWD", [*published, *asked, "--ctdir", "ORIGINAL", *set_connection]
        else:
            yield "IN", [*sender, "-m", "mark", "--mark", none, *set_packet]
    if mark.conntrack:
        known = [*_direction("REPLY"), "-m", "connmark", "--mark", ours]
        yield from ((chain, [*known, *set_packet]) for chain in ("PRE", "OUT"))
        # The accepted socket keeps the mark in case conntrack loses the connection (tcp_fwmark_accept); see ``nft``.
        yield "IN", ["-m", "connmark", "--mark", ours, *set_packet]
        yield "OUT", ["-p", "udp", *_direction("ORIGINAL"), "-m", "connmark", "--mark", ours, *set_packet]
    if mark.transparent:
        # Without --nowildcard, sockets bound to the wildcard address (UDP with IP_PKTINFO) would not match.
        socket = ["-m", "socket", "--transparent", "--nowildcard"]
        yield "PRE", ["-m", "mark", "--mark", none, *socket, *set_packet]


def _replies_to_last_senders(tracked: list[Mark], all_bits: int) -> Iterable[tuple[str, list[str]]]:
    """On these ports the mark of an assured connection comes before that of the accepted socket; see ``nft``."""
    for port in sorted({port for mark in tracked for protocol, port in moving_ports(mark) if protocol == "tcp"}):
        served = ["-p", "tcp", "-m", "tcp", "--sport", str(port), "-m", "conntrack", "--ctstatus", "ASSURED"]
        for mark in tracked:
            set_packet = ["-m", "comment", "--comment", mark.name, "-j", "MARK", "--set-xmark", _under(mark.id, mark)]
            yield "OUT", [*served, "-m", "connmark", "--mark", _under(mark.id, mark), *set_packet]
        yield "OUT", [*served, "-m", "connmark", "!", "--mark", f"0x0/{all_bits:#x}", "-j", "RETURN"]


def _of_accepted_socket(mark: Mark) -> tuple[str, list[str]]:
    """The mark of an accepted socket comes before those of connections, of any proxy; see ``nft``."""
    return "OUT", ["-m", "mark", "--mark", _under(mark.id, mark), *_set_connection(mark)]


def _set_connection(mark: Mark) -> list[str]:
    comment = ["-m", "comment", "--comment", mark.name]
    return [*comment, "-j", "CONNMARK", "--set-xmark", _under(mark.id, mark)]


def _senders(mark: Mark) -> list[list[str]]:
    by_link = [["-i", mark.iif]] if mark.iif else []
    return by_link + [["-m", "mac", "--mac-source", mac] for mac in mark.macs]


def _stale(sender: list[str], name: list[str]) -> list[str]:
    """Drop a FIN of a connection that conntrack does not know: the RST for it would bypass the proxy; see ``nft``."""
    fin = ["-m", "conntrack", "--ctstate", "INVALID", "-m", "tcp", "--tcp-flags", "FIN", "FIN", *name, "-j", "DROP"]
    link = sender[0] == "-i"  # iptables-save lists it before the protocol, and modules after it
    return [*sender, "-p", "tcp", *fin] if link else ["-p", "tcp", *sender, *fin]


def _guards(mark: Mark, marks: list[Mark], family: str) -> Iterable[tuple[str, list[str]]]:
    if not any((":" in via) == (family == "ipv6") for via in mark.via):
        return
    drop = ["-m", "comment", "--comment", mark.name, "-j", "DROP"]
    ours = _under(mark.id, mark)
    marked = ["-m", "mark", "--mark", ours]
    if mark.conntrack:
        reply = [*_direction("REPLY"), "-m", "connmark", "--mark", ours]
        yield "POST", [*reply, "-m", "mark", "!", "--mark", ours, *drop]
    for protocol, port in moving_ports(mark):
        served = ["-p", protocol, "-m", protocol, "--sport", str(port), *marked]
        others = {other.oif for other in marks if (protocol, port) in moving_ports(other)} - {None, mark.oif}
        for oif in sorted(map(str, others)):
            yield "POST", ["-o", oif, *served, "-m", "comment", "--comment", mark.name, "-j", "RETURN"]
    if mark.oif:
        yield "POST", ["!", "-o", mark.oif, *marked, *drop]


def _memo(mark: Mark) -> Iterable[tuple[str, list[str]]]:
    for line in iptables_listing.memo(mark):
        yield MEMO, ["-m", "comment", "--comment", f'"{line}"']


def _direction(value: str) -> list[str]:
    return ["-m", "conntrack", "--ctdir", value]


def _under(number: int, mark: Mark) -> str:
    return f"{number:#x}/{mark.mask:#x}"


def observe(owner: str, listings: dict[str, Listing]) -> Observed:
    """The marks in the tables of both families. Missing, additional or reordered rules of ours make them unsound."""
    ours = [listing.of(prefix(owner)) for listing in listings.values()]
    if not any(listing.chains or listing.jumps for listing in ours):
        return Observed()
    memos = [listing.chains.get(prefix(owner) + MEMO, []) for listing in ours]
    marks = tuple(iptables_listing.marks(next((memo for memo in memos if memo), [])))
    if not marks:
        return Observed((), False)
    expected = {family: render(owner, marks, family) for family in listings}
    sound = all(listing.of(prefix(owner)).holds(expected[family]) for family, listing in listings.items())
    return Observed(marks, sound)


def script(owner: str, listing: Listing, chains: Chains) -> str:
    """The input of iptables-restore --noflush that replaces the owner's chains in one commit; "" for no change."""
    live = listing.of(prefix(owner))
    if not (chains or live.chains or live.jumps):
        return ""
    lines = ["*mangle", *(f":{chain} - [0:0]" for chain in chains)]
    lines += [f"-D {hook} {rule}" for hook, _index, rule in live.jumps]
    lines += [f"-A {chain} {rule}" for chain, rules in chains.items() for rule in rules]
    for hook, suffix in HOOKS.items():
        if prefix(owner) + suffix in chains:
            lines.append(f"-I {hook} 1 -j {prefix(owner)}{suffix}")
    gone = [chain for chain in live.chains if chain not in chains]
    lines += [f"-{verb} {chain}" for verb in "FX" for chain in gone]
    return "\n".join([*lines, "COMMIT", ""])


class IpTables:
    """Reads and writes through iptables-save and iptables-restore, whichever variant these commands are."""

    def __init__(self, runner: Runner):
        self._run = runner

    def read(self, owner: str) -> Observed:
        """The owner's live marks. Raises MissingPackage without iptables, RoutingError if it fails."""
        return observe(owner, self._listings())

    def write(self, owner: str, marks: Iterable[Mark]) -> None:
        """Replace the owner's chains in both families, or remove them without marks. A failure changes nothing."""
        marks = tuple(marks)
        before, done = self._listings(), []
        try:
            for family in COMMANDS:
                self._restore(family, script(owner, before[family], render(owner, marks, family)))
                done.append(family)
        except RoutingError:
            after = self._listings()
            for family in done:
                self._restore(family, script(owner, after[family], before[family].of(prefix(owner)).chains))
            raise

    def _listings(self) -> dict[str, Listing]:
        return {
            family: iptables_listing.parse(self._call([f"{command}-save", "-t", "mangle"]))
            for family, command in COMMANDS.items()
        }

    def _restore(self, family: str, text: str) -> None:
        if text:
            self._call([f"{COMMANDS[family]}-restore", "--noflush", "-w", str(LOCK_WAIT)], text)

    def _call(self, argv: list[str], stdin: str | None = None) -> str:
        try:
            done = self._run(argv, stdin)
        except MissingCommand as error:
            raise MissingPackage("iptables", f"marks in iptables need the command {argv[0]}") from error
        if done.code:
            reason = " ".join((done.stderr or done.stdout).split()) or f"exit status {done.code}"
            raise RoutingError(f"{' '.join(argv)}: {reason}")
        return done.stdout
