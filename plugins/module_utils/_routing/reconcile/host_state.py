# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a host has, and what a document means on this very host: interfaces and MACs filled in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ..document import formatting, own_traffic
from ..document.documents import Document
from ..document.model import OWNERS, Address, KernelObject, Mark, Route, Rule
from ..errors import MissingPackage, NotReady, Refused
from ..host import files, runner
from ..host.mac_cache import Macs
from ..host.sysctl import Sysctls
from ..marks import selection
from ..netlink import conntrack, link_marks
from ..netlink.kernel import Kernel
from . import placement
from .plan import Foreign, State

# How long a proxy may take to answer ARP or ND: the kernel asks three times, one second apart (neigh/mcast_solicit).
NEIGHBOUR_WAIT = 2.0


@dataclass(frozen=True)
class Host:
    """The ways to the host, each replaceable: commands, settings, the kernel, connections by mark, the lock, memory."""

    runner: runner.Runner = runner.run
    sysctls: Sysctls = field(default_factory=Sysctls)
    make_kernel: Callable[[], Any] = Kernel
    count_connections: Callable[[int, int], Any] = conntrack.count
    lock: str = files.LOCK
    neighbour_wait: float = NEIGHBOUR_WAIT
    macs: Macs = field(default_factory=Macs)


@dataclass
class View:
    """Want and have, side by side; ``waiting`` is what is applied without for now, ``warnings`` are for a human.

    ``held_back`` is what cannot be applied yet, and ``missing`` says why; only where that was allowed. ``answered`` is
    which MACs the proxies have, by address, that are followed.

    ``own`` are the addresses of the host, ``others`` the routes of others in tables that the rules ask; ``let_go`` says
    which rules are not in ``want`` because their source is an address of the host.
    """

    want: State
    have: State
    foreign: Foreign = field(default_factory=Foreign)
    held_back: tuple[Any, ...] = ()
    missing: list[str] = field(default_factory=list)
    answered: dict[str, tuple[str, ...]] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    own: frozenset[str] = frozenset()
    others: tuple[Route, ...] = ()
    let_go: list[str] = field(default_factory=list)


def read(kernel: Any, host: Host, document: Document) -> tuple[State, Foreign]:
    """The owner's set as it is on the host, and what others own. ``document`` says the owner and the settings."""
    rules, other_rules = _split(kernel.rules(), document.protocol)
    tables = sorted({route.table for route in document.routes})
    routes, _none = _split(kernel.routes(document.protocol), document.protocol)
    _ours, other_routes = _split([found for table in tables for found in kernel.routes(table=table)], document.protocol)
    addresses, other_addresses = _split(kernel.addresses(), document.protocol)
    settings = host.sysctls.read(document.owner, document.sysctls)
    live = selection.read(host.runner, document.owner, document.mark_engine, bool(document.marks))
    foreign = Foreign(
        tuple((found.value, found.protocol) for found in other_rules if found.value is not None),
        tuple((found.family, found.table, found.protocol, found.text) for found in other_routes),
        tuple((found.value, found.protocol) for found in other_addresses),
        tuple(other_rules),
    )
    return State(rules, routes, live.marks, settings, live.sound, addresses, live.engine), foreign


def _split(found: list[KernelObject], protocol: int) -> tuple[tuple[Any, ...], list[KernelObject]]:
    """The objects of an owner, as far as the model can say them, and those of others."""
    ours = tuple(one.value for one in found if one.protocol == protocol and one.value is not None)
    return ours, [one for one in found if one.protocol != protocol]


def view(host: Host, document: Document, partly: bool = False) -> View:
    """Read the host and resolve the document on it. Refused and MissingPackage as they come.

    NotReady where something is missing; with ``partly``, what needs it is held back.
    """
    with host.make_kernel() as kernel:
        have, foreign = read(kernel, host, document)
        wanted = wish(document)
        own, others = _own(kernel, wanted), _routes_of_others(kernel, wanted, document.protocol)
        _refuse_main_address(kernel, document, own)
        wanted, let_go = without_own_sources(wanted, others, own)
        want, held_back, missing = within_reach(kernel, wanted)
        if missing and not partly:
            raise NotReady(missing)
        if partly:
            early, unreached = _early(kernel, want, others)
            held_back, missing = (*held_back, *early), [*missing, *unreached]
            want = replace(want, rules=tuple(rule for rule in want.rules if rule not in early))
        found = View(want, have, foreign, held_back, missing, own=own, others=others, let_go=let_go)
        _place(found, document)
        engine = found.want.engine or have.engine
        told = link_marks.resolve(kernel, document.marks)
        certain = [_guard(kernel, engine, _mark(kernel, host, mark, found)) for mark in told]
    marks = _guessed(certain, found, host.macs.known(document.owner))
    _refuse_shared_macs(marks)
    _refuse_unheard_sockets(host, document)
    found.warnings += selection.limits(marks, engine)
    found.want = replace(found.want, marks=marks, engine=engine)
    return found


def _place(found: View, document: Document) -> None:
    """Put the rules where they have to stand. Those of a document that somebody wrote himself stay as he said."""
    if document.owner not in OWNERS:
        return
    there = placement.placed(found.want.rules, found.foreign.listed)
    found.want = replace(found.want, rules=tuple(map(there.at, found.want.rules)))
    found.held_back = tuple(there.at(value) if isinstance(value, Rule) else value for value in found.held_back)
    found.warnings += placement.sentences(there, document.owner)


def view_without_tools(host: Host, document: Document, missing: MissingPackage) -> View:
    """For check mode on a fresh host: nothing of ours can be there yet, except for settings, which need no tool."""
    settings = host.sysctls.read(document.owner, document.sysctls)
    warning = f"{missing}; compared with an empty owned set"
    return View(wish(document), State(sysctls=settings), warnings=[warning])


def wish(document: Document) -> State:
    """The document as a wanted state, nothing filled in yet."""
    engine = None if document.mark_engine == selection.AUTO else document.mark_engine
    sections = (document.rules, document.routes, document.marks, document.sysctls)
    return State(*sections, addresses=document.addresses, engine=engine)


def resolve(kernel: Any, want: State) -> State:
    """The state with the interfaces of its routes. NotReady when something that it needs is not there."""
    found, _held_back, missing = within_reach(kernel, want)
    if missing:
        raise NotReady(missing)
    return found


def within_reach(kernel: Any, want: State) -> tuple[State, tuple[Any, ...], list[str]]:
    """What can be applied now, its routes with their interfaces; the addresses and routes that cannot; and why not.

    The kernel takes rules for a link that is not there, so that is a sentence only.
    """
    links = kernel.links()
    own = {found.value.address for found in kernel.addresses()}
    given = {address.address for address in want.addresses if not address.retiring}
    problems = [
        f"waiting for link {name} to exist"
        for rule in want.rules
        for name in (rule.iif, rule.oif)
        if name and name not in links and not rule.retiring
    ]
    down = [address for address in want.addresses if not links.get(address.dev) and not address.retiring]
    problems += [f"waiting for link {address.dev} to be up" for address in down]
    routes, late = [], []
    for route in want.routes:
        found = _route(kernel, route, links, own | given)
        if isinstance(found, str):
            problems.append(found)
            late.append(route)
        else:
            routes.append(found)
    addresses = tuple(address for address in want.addresses if address not in down)
    state = replace(want, routes=tuple(routes), addresses=addresses)
    return state, (*down, *late), list(dict.fromkeys(problems))


def leave_alone(want: State, held_back: tuple[Any, ...]) -> State:
    """The state with what is held back as retiring: kept if it is there, and not added."""
    late: list[Any] = [replace(value, retiring=True) for value in held_back]
    rules = (value for value in late if isinstance(value, Rule))
    routes = (value for value in late if isinstance(value, Route))
    addresses = (value for value in late if isinstance(value, Address))
    return replace(
        want,
        rules=(*want.rules, *rules),
        routes=(*want.routes, *routes),
        addresses=(*want.addresses, *addresses),
    )


def without_absent_settings(host: Host, document: Document) -> tuple[Document, list[str]]:
    """The document without the settings of what is not there yet, and sentences about them."""
    absent = host.sysctls.absent(document.sysctls)
    there = tuple(sysctl for sysctl in document.sysctls if sysctl.name not in absent)
    return replace(document, sysctls=there), list(absent.values())


def _own(kernel: Any, want: State) -> frozenset[str]:
    """The addresses that this host has, or is about to have."""
    given = {address.address for address in want.addresses if not address.retiring}
    return frozenset(given | {found.value.address for found in kernel.addresses()})


def _routes_of_others(kernel: Any, want: State, protocol: int) -> tuple[Route, ...]:
    """What others have put into the tables that the wanted rules ask and the wanted routes do not fill."""
    filled = {route.table for route in want.routes}
    asked = {rule.table for rule in want.rules if rule.table is not None} - filled
    found = (one for table in sorted(asked) for one in kernel.routes(table=table) if one.protocol != protocol)
    return tuple(one.value for one in found if one.value is not None)


def without_own_sources(want: State, others: tuple[Route, ...], own: frozenset[str]) -> tuple[State, list[str]]:
    """The state without the rules that would deliver what this host sends to itself, and a sentence for each source."""
    found = own_traffic.from_own(want.rules, own_traffic.local_tables((*want.routes, *others)), own)
    gone = {one.rule for one in found}
    return replace(want, rules=tuple(rule for rule in want.rules if rule not in gone)), own_traffic.sentences(found)


def _early(kernel: Any, want: State, others: tuple[Route, ...]) -> tuple[tuple[Rule, ...], list[str]]:
    """At boot: rules that would take what the host sends if their source came to be its own address, and why they wait.

    A backend without a route to it cannot be reached anyway; once there is one, the host's own addresses are known.
    """
    local = own_traffic.local_tables((*want.routes, *others))
    anywhere = [rule for rule in want.rules if rule.iif in (None, "lo") and own_traffic.delivers(rule, local)]
    sources = {rule.src: rule.src.partition("/")[0] for rule in anywhere if rule.src and not rule.retiring}
    unreached = {prefix: address for prefix, address in sources.items() if not _reaches(kernel, address)}
    early = tuple(rule for rule in anywhere if rule.src in unreached)
    return early, [f"waiting for a route to {address}" for address in unreached.values()]


def _reaches(kernel: Any, address: str) -> bool:
    """Whether this host has a route to an address, and an address of its own that is good for it."""
    source = kernel.source_towards(address)
    return bool(source) and (not source.startswith("fe80:") or address.startswith("fe80:"))


def unbounded(found: View, purge: bool) -> list[str]:
    """Rules that would deliver whatever this host sends to itself, here or together with what others have."""
    routes = [*found.want.routes, *(() if purge else found.have.routes)]
    ours, asked = own_traffic.local_tables(routes), own_traffic.local_tables([*routes, *found.others])
    pairs = [(rule, "", own_traffic.unbounded(rule, asked)) for rule in found.want.rules]
    pairs += [
        (rule, f" ({formatting.owner_name(protocol)}, already there)", own_traffic.unbounded(rule, ours))
        for rule, protocol in found.foreign.rules
    ]
    return [f"`{formatting.rule(rule)}`{whose} {reason}" for rule, whose, reason in pairs if reason]


def _refuse_main_address(kernel: Any, document: Document, own: frozenset[str]) -> None:
    """A way back by source takes all that the host sends from there: it needs an address that nothing else uses."""
    given = {address.address for address in document.addresses}
    defaults = [route for route in document.routes if route.dst == "default"]
    hops: dict[Any, str] = {(route.family, route.table): route.via for route in defaults if route.via}
    errors = []
    for rule in document.rules if document.owner == "return_path" else ():
        source, via = (rule.src or "").partition("/")[0], hops.get((rule.family, rule.table))
        chosen = rule.fwmark or rule.sport or rule.dport or rule.uid_range or rule.retiring
        if via and source in own - given and not chosen and kernel.source_towards(via) == source:
            errors.append(
                f"`{formatting.rule(rule)}` would send all that this host sends by way of {via}, because {source} is "
                "the address that it uses for all else; use an address that only this proxy connects to"
            )
    if errors:
        raise Refused(errors)


def _route(kernel: Any, route: Route, links: dict[str, bool], own: set[str]) -> Route | str:
    """The route with its interface, or what it still needs."""
    if route.retiring or route.type not in ("unicast", "local"):
        return route
    if route.dev and not links.get(route.dev):
        return f"waiting for link {route.dev} to be up"
    if route.src and route.src not in own:
        return f"waiting for address {route.src} to be on this host"
    if route.via in own:
        return f"{route.via} is an address of this host itself and cannot be its next hop"
    if route.via and not route.onlink:
        dev = kernel.on_link(route.via, route.dev)
        where = f" on {route.dev}" if route.dev else ""
        return replace(route, dev=dev) if dev else f"waiting for {route.via} to be on-link{where}"
    return route


def _mark(kernel: Any, host: Host, mark: Mark, found: View) -> Mark:
    """The mark with its MAC, declared or from the neighbour table; without, when the proxy does not answer.

    Where the proxy's addresses are at several MACs, all count: it may have moved, and the entry of the address that it
    is not spoken to by is an old one.
    """
    if mark.retiring or not mark.follows_neighbour:
        return mark
    if mark.macs:
        for via in mark.via:
            _compare(mark, via, kernel.neighbour(via, 0), found)
        return mark
    answers = ((via, kernel.neighbour(via, host.neighbour_wait)) for via in mark.via)
    first = next(((via, mac) for via, mac in answers if mac), None)
    if not first:
        return mark
    others = [kernel.neighbour(via, 0) for via in mark.via if via != first[0]]
    mark = replace(mark, macs=(first[1], *(mac for mac in others if mac)))
    found.answered.update(dict.fromkeys(mark.via, mark.macs))
    return mark


def _guessed(selection: list[Mark], found: View, remembered: dict[str, tuple[str, ...]]) -> tuple[Mark, ...]:
    """The marks, those of silent proxies with the MACs of the live table, or those that are remembered.

    A MAC that another proxy has now is none: it has moved there.
    """
    taken = {mac for mark in selection for mac in mark.macs if not mark.retiring}
    wanted = []
    for mark in selection:
        if mark.macs or mark.retiring or not mark.follows_neighbour:
            wanted.append(mark)
            continue
        same = [known for known in found.have.marks if known.key == mark.key and known.via == mark.via]
        link = next((known.iif for known in same if known.iif), None)
        if link:
            # A tunnel that is down: what comes in by it is marked from its first packet on.
            wanted.append(replace(mark, iif=link))
            continue
        guesses = [*(known.macs for known in same), *(remembered.get(via, ()) for via in mark.via)]
        macs = next((guess for guess in guesses if guess and not taken & set(guess)), ())
        if not macs:
            found.waiting.append(
                f"waiting for {' or '.join(mark.via)} to answer: the MAC of proxy {mark.name} is not known yet"
            )
        taken |= set(macs)
        wanted.append(replace(mark, macs=macs))
    return tuple(wanted)


def _guard(kernel: Any, engine: str | None, mark: Mark) -> Mark:
    """The mark with the interface that leads to its proxy, when that is all its engine can guard by."""
    if engine != "iptables":
        return mark
    devices = {kernel.on_link(via) for via in mark.via}
    return replace(mark, oif=devices.pop() if len(devices) == 1 else None)


def _compare(mark: Mark, via: str, mac: str | None, found: View) -> None:
    if mac and mac not in mark.macs:
        found.warnings.append(f"proxy {mark.name} is expected at {mark.macs[0]}, but {via} is at {mac}")


def _refuse_shared_macs(selection: tuple[Mark, ...]) -> None:
    owner: dict[str, str] = {}
    errors = [
        f"proxies {owner[mac]} and {mark.name} both answer from {mac}: one interface cannot be two proxies"
        for mark in selection
        for mac in mark.macs
        if owner.setdefault(mac, mark.name) != mark.name
    ]
    if errors:
        raise Refused(errors)


def _refuse_unheard_sockets(host: Host, document: Document) -> None:
    """With src_valid_mark, the kernel asks the way back to the sender under the packet's mark, finds the sender to be
    local, and drops the packet in silence (fib_validate_source; IPv4 only)."""
    name = "net.ipv4.conf.all.src_valid_mark"
    settled = {sysctl.name: sysctl.value for sysctl in document.sysctls}.get(name) or host.sysctls.value(name)
    socketed = [mark.name for mark in document.marks if mark.transparent and not mark.retiring]
    if socketed and settled == "1":
        reason = f"{name} is 1, with which the kernel silently drops what this mark should deliver"
        raise Refused([f"mark {socketed[0]}: {reason}; set it to 0"])
