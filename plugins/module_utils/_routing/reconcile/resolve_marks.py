# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What each mark matches on this host: the MAC addresses of its proxy, or the interface that leads there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..document.documents import Document
from ..document.model import Mark, ip_protocol_name
from ..errors import Refused
from ..marks import selection
from . import resolve_links
from .host import Host
from .run import Run
from .state import State

SRC_VALID_MARK = "net.ipv4.conf.all.src_valid_mark"


def resolve(run: Run) -> Run:
    """The run whose desired marks have their MACs; ``waiting`` names proxies whose MAC is unknown. Raises Refused."""
    engine = run.want.engine or run.have.engine
    resolved, answered, warnings = [], dict(run.answered), list(run.warnings)
    for mark in resolve_links.resolve(run.kernel, run.document.marks):
        macs, differing = _lookup(run.kernel, run.host, mark)
        if macs:
            mark = replace(mark, macs=macs)
            answered.update(dict.fromkeys(mark.via, macs))
        warnings += differing
        resolved.append(_with_guard_interface(run.kernel, engine, mark))
    marks, waiting = _with_fallback(resolved, run.have.marks, run.host.macs.known(run.document.owner))
    _refuse_shared_macs(marks)
    _refuse_src_valid_mark(run.host, run.document)
    want = with_last_senders(replace(run.want, marks=marks, engine=engine), run.have)
    return replace(
        run,
        want=want,
        answered=answered,
        waiting=(*run.waiting, *waiting),
        warnings=(*warnings, *selection.limits(marks, engine)),
    )


def with_last_senders(want: State, have: State) -> State:
    """The state whose marks keep the ports that they have on the host while a rule for such a port retires."""
    retiring = {
        (rule.fwmark, f"{ip_protocol_name(rule.ip_proto)}/{rule.sport[0]}")
        for rule in want.rules
        if rule.retiring and rule.sport and rule.ip_proto
    }
    ports = {mark.key: [port for port in mark.last_sender if (mark.id, port) in retiring] for mark in have.marks}
    marks = (
        replace(mark, last_sender=(*mark.last_sender, *ports.get(mark.key, ()))) if not mark.retiring else mark
        for mark in want.marks
    )
    return replace(want, marks=tuple(marks))


def _lookup(kernel: Any, host: Host, mark: Mark) -> tuple[tuple[str, ...], list[str]]:
    """The MACs that a mark's proxy answered from, if they are to be looked up; and warnings about a declared one.

    Where the proxy's addresses are at several MACs, all count: it may have moved, and the neighbour entry of an address
    that it does not use with this host is old.
    """
    if mark.retiring or not mark.follows_neighbour:
        return (), []
    if mark.macs:
        actual = [(via, kernel.neighbour(via, 0)) for via in mark.via]
        expected = f"proxy {mark.name} is expected at {mark.macs[0]}"
        return (), [f"{expected}, but {via} is at {mac}" for via, mac in actual if mac and mac not in mark.macs]
    answers = ((via, kernel.neighbour(via, host.neighbour_wait)) for via in mark.via)
    first = next(((via, mac) for via, mac in answers if mac), None)
    if not first:
        return (), []
    others = [kernel.neighbour(via, 0) for via in mark.via if via != first[0]]
    return replace(mark, macs=(first[1], *(mac for mac in others if mac))).macs, []


def _with_fallback(
    marks: Iterable[Mark], live: Iterable[Mark], cache: dict[str, tuple[str, ...]]
) -> tuple[tuple[Mark, ...], list[str]]:
    """The marks, those of silent proxies with the MACs of the live marks or of the cache; and who is still unknown.

    A MAC that another proxy answers from now is no fallback: it has moved there.
    """
    marks = list(marks)
    taken = {mac for mark in marks for mac in mark.macs if not mark.retiring}
    resolved, waiting = [], []
    for mark in marks:
        if mark.macs or mark.retiring or not mark.follows_neighbour:
            resolved.append(mark)
            continue
        same = [known for known in live if known.key == mark.key and known.via == mark.via]
        link = next((known.iif for known in same if known.iif), None)
        if link:
            # A tunnel that is down: its packets are marked from the first one on.
            resolved.append(replace(mark, iif=link))
            continue
        candidates = [*(known.macs for known in same), *(cache.get(via, ()) for via in mark.via)]
        macs = next((candidate for candidate in candidates if candidate and not taken & set(candidate)), ())
        if not macs:
            proxy = f"the MAC of proxy {mark.name} is not known yet"
            waiting.append(f"waiting for {' or '.join(mark.via)} to answer: {proxy}")
        taken |= set(macs)
        resolved.append(replace(mark, macs=macs))
    return tuple(resolved), waiting


def _with_guard_interface(kernel: Any, engine: str | None, mark: Mark) -> Mark:
    """The mark with the interface that leads to its proxy, for an engine that cannot match a next hop."""
    if engine != "iptables":
        return mark
    devices = {kernel.on_link(via) for via in mark.via}
    return replace(mark, oif=devices.pop() if len(devices) == 1 else None)


def _refuse_shared_macs(marks: Iterable[Mark]) -> None:
    first: dict[str, str] = {}
    errors = [
        f"proxies {first[mac]} and {mark.name} both answer from {mac}: one interface cannot be two proxies"
        for mark in marks
        for mac in mark.macs
        if first.setdefault(mac, mark.name) != mark.name
    ]
    if errors:
        raise Refused(errors)


def _refuse_src_valid_mark(host: Host, document: Document) -> None:
    """With src_valid_mark, the kernel validates the source under the packet's mark, finds the sender to be local, and
    drops the packet silently (fib_validate_source; IPv4 only)."""
    desired = {sysctl.name: sysctl.value for sysctl in document.sysctls}.get(SRC_VALID_MARK)
    transparent = [mark.name for mark in document.marks if mark.transparent and not mark.retiring]
    if transparent and (desired or host.sysctls.value(SRC_VALID_MARK)) == "1":
        reason = f"{SRC_VALID_MARK} is 1, so the kernel silently drops the packets that this mark should deliver"
        raise Refused([f"mark {transparent[0]}: {reason}; set it to 0"])
