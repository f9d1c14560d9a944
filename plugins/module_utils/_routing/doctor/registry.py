# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every check, in the order of cause and effect: of two things that are wrong, the first explains the second."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Callable

from .checks import drift, foreign_rules, limits, packet_filters, prerequisites, relays, services, source_nat, sysctls
from .facts.model import Facts
from .facts.unread import NotRead
from .finding import OK, Finding, skip, warn

ANY, BACKEND, PROXY = "any", "backend", "proxy"


@dataclass(frozen=True)
class Check:
    """``run`` yields what is wrong, nothing when it is ``fine``. ``early`` ones run before the first change too.

    A check that raises gives a finding of its own, beside what it has found until then: it ends neither the report nor
    a role.
    """

    id: str
    end: str
    early: bool
    run: Callable[[Facts], Iterable[Finding]]
    fine: str

    def concerns(self, facts: Facts) -> bool:
        """Whether it has anything to say about this host."""
        ends = {ANY: _anywhere, BACKEND: _is_backend, PROXY: _is_proxy}
        return (facts.applied or self.early) and ends[self.end](facts)

    def findings(self, facts: Facts) -> Iterator[Finding]:
        found: list[Finding] = []
        try:
            found.extend(self.run(facts))
        except NotRead as error:
            found.append(skip(str(error)))
        except Exception as error:  # noqa: BLE001
            found.append(self._failed(error))
        return (replace(one, id=self.id) for one in found or [Finding(OK, "", self.fine)])

    def _failed(self, error: Exception) -> Finding:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(frame.filename)}, line {frame.lineno}"
        return warn(
            self.id,
            f"check {self.id} failed: {type(error).__name__}: {error} ({where})",
            f"that is a defect of the doctor, and it is not known whether {self.fine}",
            f"report it with the output of `l4proxy doctor --json`; l4proxy_ignore_findings: [{self.id}] leaves it out",
        )


def _anywhere(_facts: Facts) -> bool:
    return True


def _is_backend(facts: Facts) -> bool:
    return bool(facts.return_path)


def _is_proxy(facts: Facts) -> bool:
    return bool(facts.local_delivery) or facts.forwarder is not None


CHECKS = (
    Check("unread", ANY, True, prerequisites.unread, "everything that the checks go by could be read"),
    Check("packages", ANY, True, prerequisites.packages, "what the engines need is installed"),
    Check("documents", ANY, False, prerequisites.documents, "the state documents can be read"),
    Check("links", ANY, True, prerequisites.links, "the interfaces of the documents are up"),
    Check("proxy_on_link", BACKEND, True, prerequisites.proxy_on_link, "every proxy is a direct neighbour"),
    Check("proxy_mac", BACKEND, True, prerequisites.proxy_mac, "every proxy is at the MAC that is expected"),
    Check("default_route", BACKEND, True, sysctls.default_route, "there is a route before the mark is restored"),
    Check("rp_filter", BACKEND, True, sysctls.rp_filter, "rp_filter lets packets of clients in"),
    Check("src_valid_mark", PROXY, True, sysctls.src_valid_mark, "no mark of a socket meets src_valid_mark"),
    Check("own_traffic", ANY, True, foreign_rules.own_traffic_taken, "no rule takes what this host itself sends"),
    Check("taken", ANY, True, foreign_rules.taken, "our priorities and tables are ours alone"),
    Check("rule_before", ANY, True, foreign_rules.rule_before, "no rule of others is asked first for a reply"),
    Check("mark_shared", ANY, True, foreign_rules.mark_shared, "no rule of others goes by our bits of the mark"),
    Check("arp", PROXY, True, sysctls.arp, "this host answers ARP for its own addresses only"),
    Check("firewall", ANY, True, packet_filters.firewall, "no packet filter drops the sample client"),
    Check("source_nat", ANY, True, source_nat.source_nat, "no rule rewrites the clients' addresses"),
    Check(
        "mark_clobbered",
        BACKEND,
        True,
        packet_filters.mark_clobbered,
        "no packet filter overwrites our mark bits",
    ),
    Check("untracked", BACKEND, True, packet_filters.untracked, "no rule keeps connections of the path from conntrack"),
    Check("conntrack", BACKEND, True, limits.conntrack, "the conntrack table has room"),
    Check("contested", ANY, False, services.contested, "nobody undoes what the keeper puts back"),
    Check("settings", ANY, False, drift.settings, "the kernel's settings are as the documents say"),
    Check("redirected", BACKEND, True, sysctls.redirected, "no redirect has taught another way to a client"),
    Check("addresses", ANY, False, drift.addresses, "this host has the addresses of its documents"),
    Check("waiting", ANY, False, drift.waiting, "nothing that the documents need is missing"),
    Check("routes", ANY, False, drift.routes, "routes are as the documents say"),
    Check("rules", ANY, False, drift.rules, "rules are as the documents say"),
    Check("marks", ANY, False, drift.marks, "the table of marks is as the documents say"),
    Check("forwarder", PROXY, False, services.forwarder, "the forwarder runs and may use clients' addresses"),
    Check("listening", PROXY, False, services.listening, "the forwarder listens on every address of its config"),
    Check("families", PROXY, False, services.families, "replies of every backend of the config are taken in"),
    Check("lookup", ANY, False, drift.lookup, "the kernel sends a sample client's replies where they belong"),
    Check("udp_source", BACKEND, True, limits.udp_source, "no UDP server answers from another address"),
    Check("relayed", BACKEND, True, relays.relayed, "no relay of this host stands before a server"),
    Check("containers", BACKEND, True, packet_filters.containers, "replies of containers get their mark back"),
    Check("ip_forward", PROXY, True, sysctls.ip_forward, "this host does not route for others"),
    Check("port_range", PROXY, True, limits.port_range, "there are ephemeral ports enough"),
    Check("accept_redirects", BACKEND, False, sysctls.accept_redirects, "redirects are not accepted"),
    Check("send_redirects", PROXY, False, sysctls.send_redirects, "redirects are not sent"),
    Check("keeper", ANY, False, services.keeper, "the keeper runs, now and at boot"),
    Check("networkd", ANY, True, services.networkd, "systemd-networkd leaves rules of others alone"),
)


def examine(facts: Facts, ignore: Iterable[str] = ()) -> list[Finding]:
    """The findings of every check that concerns the host, but for those with an id in ``ignore``; in causal order."""
    left_out = frozenset(ignore)
    chosen = (check for check in CHECKS if check.id not in left_out and check.concerns(facts))
    return [finding for check in chosen for finding in check.findings(facts)]
