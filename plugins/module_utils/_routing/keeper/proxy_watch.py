# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Watch the next hops of routes that have fallbacks, and move these routes away from a dead one at once.

A pass would do the same, but reads the whole host first. A move needs no lock: every run accepts any of a route's next
hops as in place. While nobody else answers, nothing is moved.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..document.documents import Document
from ..document.model import Route, family_of
from ..errors import RoutingError
from ..netlink.kernel import NetlinkError, reason
from ..netlink.neighbour_probe import Neighbour, open_prober
from ..reconcile import next_hops
from .liveness import Liveness

# Seconds: questions that are due within so little time are sent together.
TOGETHER = 0.02
# Most answers arrive within so many seconds, and to wait for them is cheaper than to wake up once more.
PATIENCE = 0.002
# Seconds to sleep while there is nothing to watch.
NEVER = 3600.0

log = logging.getLogger("l4proxy.keep")


@dataclass
class _Watched:
    """A next hop: how to ask it, and since when (seconds of the epoch) it is dead."""

    neighbour: Neighbour
    liveness: Liveness
    since: float | None = None


class ProxyWatch:
    """``make_kernel`` and ``make_prober`` open the network; ``clock`` returns monotonic seconds, ``now`` the time."""

    def __init__(
        self,
        make_kernel: Callable[[], Any],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        make_prober: Callable[[str, str, Iterable[str]], Any] = open_prober,
    ):
        self._make_kernel, self._clock, self._now, self._make_prober = make_kernel, clock, now, make_prober
        self._documents: tuple[Document, ...] = ()
        self._watched: dict[str, _Watched] = {}
        # By link and family, with the addresses that its filter passes.
        self._probers: dict[tuple[str, str], tuple[frozenset[str], Any]] = {}
        self._answering: dict[str, bool | None] = {}
        # By the next hop of the document, the live one.
        self._uses: dict[str, str] = {}
        self.fault = ""

    def answers(self, address: str) -> bool | None:
        """Whether a next hop answers; None if that is not known or in doubt."""
        watched = self._watched.get(address)
        return watched.liveness.answers if watched else None

    def sleep(self, now: float) -> float:
        """Seconds until the next question is due."""
        return max(0.0, min((each.liveness.due for each in self._watched.values()), default=now + NEVER) - now)

    @property
    def silent(self) -> dict[str, tuple[str, float]]:
        """The dead next hops by address: the proxy's name, and since when."""
        names = self._names()
        dead = ((address, each.since) for address, each in self._watched.items() if each.since is not None)
        return {address: (names.get(address, address), since) for address, since in dead if since is not None}

    @property
    def problems(self) -> list[str]:
        """Sentences for the operator."""
        sentences = [self.fault] if self.fault else []
        for address, (name, _since) in self.silent.items():
            sentences.append(_sentence(name, [address], self._consequence(address)))
        return sentences

    def follow(self, documents: Mapping[str, Document]) -> None:
        """Watch the next hops of these documents. To be called after each pass: links may have changed."""
        self._documents = tuple(document for document in documents.values() if any(_moving(document)))
        hops = {hop for document in self._documents for route in _moving(document) for hop in _hops(route)}
        found = self._resolve(hops) if hops else {}
        now = self._clock()
        before, self._watched = self._watched, {}
        for address, neighbour in found.items():
            watched = before.get(address) or _Watched(neighbour, Liveness(now))
            watched.neighbour = neighbour
            self._watched[address] = watched
        self._open_probers(found.values())

    def _resolve(self, addresses: set[str]) -> dict[str, Neighbour]:
        """The neighbours among these addresses."""
        found = {}
        try:
            with self._make_kernel() as kernel:
                for address in sorted(addresses):
                    dev = kernel.on_link(address)
                    own = kernel.source_towards(address) if dev else None
                    if dev and own:
                        found[address] = Neighbour(address, dev, own)
        except RoutingError:
            pass  # the pass has reported it
        return found

    def _open_probers(self, neighbours: Iterable[Neighbour]) -> None:
        wanted: dict[tuple[str, str], set[str]] = {}
        for each in neighbours:
            wanted.setdefault((each.dev, family_of(each.address)), set()).add(each.address)
        for key, (addresses, prober) in list(self._probers.items()):
            if wanted.get(key, set()) != addresses:
                prober.close()
                del self._probers[key]
        self.fault = ""
        for key in wanted.keys() - self._probers.keys():
            try:
                prober = self._make_prober(*key, wanted[key])
            except OSError as error:
                self._fail(f"cannot ask the proxies on {key[0]} whether they are alive: {reason(error)}")
                continue
            self._probers[key] = frozenset(wanted[key]), prober
            if not prober.has_macs:
                self._fail(f"{key[0]} has no MAC addresses, so nobody sees there that a proxy is dead")

    def _fail(self, sentence: str) -> None:
        self.fault = f"{sentence}; no route moves away from a dead one"

    def tend(self) -> bool:
        """Read answers, ask what is due, and move routes; whether the result differs from the last one."""
        now = self._clock()
        if not self._watched or self.sleep(now) > 0:
            return False
        if any(each.liveness.unanswered for each in self._watched.values()):
            for _addresses, prober in self._probers.values():
                self._read(prober)
        asked = [
            each
            for each in self._watched.values()
            if each.liveness.due <= now + TOGETHER and each.liveness.ask(now) and self._ask(each, now)
        ]
        for addresses, prober in self._probers.values():
            waiting = [each.liveness for each in asked if each.neighbour.address in addresses]
            while any(liveness.unanswered for liveness in waiting) and prober.wait(PATIENCE):
                self._read(prober)
        answering = {address: each.liveness.answers for address, each in self._watched.items()}
        if answering == self._answering:
            return False
        self._answering = answering
        return self._move() | self._tell()

    def _read(self, prober: Any) -> None:
        for address in prober.answers():
            if address in self._watched:
                self._watched[address].liveness.answered()

    def _ask(self, watched: _Watched, now: float) -> bool:
        """Ask one next hop; whether that was possible."""
        neighbour, liveness = watched.neighbour, watched.liveness
        _addresses, prober = self._probers.get((neighbour.dev, family_of(neighbour.address)), (None, None))
        try:
            if prober is None or not prober.has_macs:
                raise OSError
            prober.ask(neighbour, liveness.asks_everybody)
        except OSError as error:
            if error.errno == errno.EPERM:  # systemd's IPAddressDeny, or a packet filter
                self._fail(f"cannot ask proxy {neighbour.address} whether it is alive: {reason(error)}")
            liveness.not_asked(now)
            return False
        liveness.asked(now)
        return True

    def _move(self) -> bool:
        """Move each route to the next hop that it should have now; whether there was one."""
        moved = False
        try:
            with self._make_kernel() as kernel:
                for document in self._documents:
                    for new in self._moves(kernel, document):
                        kernel.set_route(new, document.protocol)
                        moved = True
        except (NetlinkError, OSError, RoutingError) as error:
            # The route has changed meanwhile, which starts a pass; or that will log what is wrong.
            log.warning("cannot move routes: %s", reason(error))
        return moved

    def _moves(self, kernel: Any, document: Document) -> Iterator[Route]:
        """The live routes that should have another next hop, with that."""
        live = {each.value.key: each.value for each in kernel.routes(document.protocol) if each.value}
        routes = tuple(_moving(document))
        for route, chosen in zip(routes, next_hops.choose(routes, live.values(), self.answers)):
            old = live.get(route.key)
            dev = kernel.on_link(str(chosen.via), route.dev) if old and old.via != chosen.via else None
            if old and dev:
                yield replace(old, via=chosen.via, dev=dev)
            if old:
                self._uses[str(route.via)] = str(chosen.via if dev else old.via)

    def _tell(self) -> bool:
        """Log who has died or come back, with all of its addresses in one line; whether there was one."""
        died: dict[str, list[str]] = {}
        back: dict[str, list[str]] = {}
        names = self._names()
        for address, watched in self._watched.items():
            is_dead = watched.liveness.alive is False
            if is_dead != (watched.since is not None):
                watched.since = self._now() if is_dead else None
                (died if is_dead else back).setdefault(names.get(address, address), []).append(address)
        for name, addresses in died.items():
            log.warning("%s", _sentence(name, addresses, self._consequence(*addresses)))
        for name, addresses in back.items():
            log.info("proxy %s answers at %s again and gets its replies back", name, " and ".join(addresses))
        return bool(died or back)

    def _consequence(self, *addresses: str) -> str:
        hops = dict.fromkeys(self._uses.get(address, address) for address in addresses)
        others = [hop for hop in hops if hop not in addresses]
        return f"its replies leave through {' and '.join(others)}" if others else "nobody else could get its replies"

    def _names(self) -> dict[str, str]:
        """The names of the proxies by address."""
        return {via: mark.name for document in self._documents for mark in document.marks for via in mark.via}


def _sentence(name: str, addresses: Iterable[str], consequence: str) -> str:
    return f"proxy {name} does not answer at {' and '.join(addresses)}: {consequence}"


def _moving(document: Document) -> Iterator[Route]:
    return (route for route in document.routes if route.fallback)


def _hops(route: Route) -> tuple[str, ...]:
    return (str(route.via), *route.fallback)
