# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The table of all checks, in order of cause and effect: an earlier finding can explain a later one."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Callable

from .checks import (
    drift,
    foreign_rules,
    kernel_datapath,
    limits,
    packet_filters,
    prerequisites,
    proxies,
    relays,
    services,
    source_nat,
    sysctls,
)
from .facts.model import Facts
from .facts.unread import NotRead
from .finding import OK, Finding, skip, warn

ANY, BACKEND, PROXY, KERNEL = "any", "backend", "proxy", "kernel"


@dataclass(frozen=True)
class Check:
    """``run`` yields a finding for each problem; without one the check reports ``ok``.

    ``runs_on`` is ANY, BACKEND, PROXY, or KERNEL for a proxy with kernel services.

    A ``preflight`` check also runs before the roles change anything. A check that raises ends neither the report nor a
    role: its findings so far are kept, and the exception becomes one more.
    """

    id: str
    runs_on: str
    preflight: bool
    run: Callable[[Facts], Iterable[Finding]]
    ok: str

    def applies_to(self, facts: Facts) -> bool:
        """Whether this check runs on the host that the facts describe."""
        if not (facts.applied or self.preflight):
            return False
        if self.runs_on == BACKEND:
            return bool(facts.return_path)
        if self.runs_on == KERNEL:
            return bool(facts.kernel_datapath)
        if self.runs_on == PROXY:
            return bool(facts.local_delivery) or facts.forwarder is not None
        return True

    def findings(self, facts: Facts) -> Iterator[Finding]:
        findings: list[Finding] = []
        try:
            findings.extend(self.run(facts))
        except NotRead as error:
            findings.append(skip(str(error)))
        except Exception as error:  # noqa: BLE001
            findings.append(self._crashed(error))
        return (replace(finding, id=self.id) for finding in findings or [Finding(OK, "", self.ok)])

    def _crashed(self, error: Exception) -> Finding:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(frame.filename)}, line {frame.lineno}"
        return warn(
            self.id,
            f"check {self.id} failed: {type(error).__name__}: {error} ({where})",
            f"this is a bug in the doctor; it is unknown whether {self.ok}",
            f"report it with the output of `l4proxy doctor --json`; to skip it, l4proxy_ignore_findings: [{self.id}]",
        )


CHECKS = (
    Check("unread", ANY, True, prerequisites.unread, "all facts about this host could be read"),
    Check("packages", ANY, True, prerequisites.packages, "all required packages are installed"),
    Check("documents", ANY, False, prerequisites.documents, "all state documents are readable"),
    Check("links", ANY, True, prerequisites.links, "all interfaces that the documents use are up"),
    Check("proxy_on_link", BACKEND, True, proxies.proxy_on_link, "every proxy is directly connected"),
    Check("proxy_mac", BACKEND, True, proxies.proxy_mac, "every proxy has the expected MAC address"),
    Check("proxy_silent", BACKEND, False, proxies.proxy_silent, "every proxy that the keeper asks answers"),
    Check("default_route", BACKEND, True, sysctls.default_route, "unmarked replies have a route to the clients"),
    Check("rp_filter", ANY, True, sysctls.rp_filter, "rp_filter accepts clients' packets"),
    Check("src_valid_mark", PROXY, True, sysctls.src_valid_mark, "src_valid_mark does not drop marked replies"),
    Check("own_traffic", ANY, True, foreign_rules.own_traffic_taken, "no rule captures this host's own traffic"),
    Check("taken", ANY, True, foreign_rules.taken, "no other owner uses our rule priorities or tables"),
    Check(
        "rule_before", ANY, True, foreign_rules.rule_before, "no foreign rule takes precedence over ours for replies"
    ),
    Check("mark_shared", ANY, True, foreign_rules.mark_shared, "no foreign rule matches our mark bits"),
    Check("arp", PROXY, True, sysctls.arp, "this host answers ARP only for its own addresses"),
    Check("firewall", ANY, True, packet_filters.firewall, "no packet filter drops the sample clients"),
    Check("source_nat", ANY, True, source_nat.source_nat, "no rule rewrites clients' addresses"),
    Check("mark_clobbered", BACKEND, True, packet_filters.mark_clobbered, "no packet filter overwrites our mark bits"),
    Check("untracked", BACKEND, True, packet_filters.untracked, "conntrack tracks every proxied connection"),
    Check("conntrack", ANY, True, limits.conntrack, "the conntrack table has room"),
    Check(
        "virtual_address", KERNEL, True, kernel_datapath.virtual_address, "no other tool translates a virtual address"
    ),
    Check(
        "forward_filter", KERNEL, True, kernel_datapath.forward_filter, "no packet filter drops what this host forwards"
    ),
    Check("others_forward", KERNEL, False, kernel_datapath.others_forward, "no other tool wants this host to forward"),
    Check(
        "forwarding", KERNEL, False, kernel_datapath.forwarding, "this host forwards the families of kernel services"
    ),
    Check(
        "tcp_loose", KERNEL, False, kernel_datapath.tcp_loose, "conntrack accepts connections that another proxy began"
    ),
    Check("contested", ANY, False, services.contested, "no other tool reverts the keeper's repairs"),
    Check("settings", ANY, False, drift.settings, "kernel settings match the documents"),
    Check("redirected", BACKEND, True, sysctls.redirected, "no ICMP redirect overrides the route to a client"),
    Check("addresses", ANY, False, drift.addresses, "this host has every address in its documents"),
    Check("waiting", ANY, False, drift.waiting, "nothing that the documents need is missing"),
    Check("routes", ANY, False, drift.routes, "routes match the documents"),
    Check("rules", ANY, False, drift.rules, "rules match the documents"),
    Check("marks", ANY, False, drift.marks, "the rules that set marks match the documents"),
    Check("kernel_services", KERNEL, False, drift.kernel_services, "the nft table of services matches the document"),
    Check("forwarder", PROXY, False, services.forwarder, "the forwarder runs and may use clients' addresses"),
    Check("listening", PROXY, False, services.listening, "the forwarder listens on every configured address"),
    Check("old_code", PROXY, False, services.old_code, "no connection keeps old code in use for more than a day"),
    Check("state_saved", PROXY, False, services.state_saved, "drain states, weights and counters survive a reboot"),
    Check("families", PROXY, False, services.families, "every configured backend has local delivery"),
    Check("lookup", ANY, False, drift.lookup, "the kernel routes sample replies as the documents say"),
    Check("udp_source", BACKEND, True, limits.udp_source, "UDP servers reply from the address that was contacted"),
    Check("relayed", BACKEND, True, relays.relayed, "no relay program listens in place of a server"),
    Check("containers", BACKEND, True, packet_filters.containers, "replies of containers get their mark back"),
    Check("ip_forward", PROXY, True, sysctls.ip_forward, "this host does not route for others"),
    Check("port_range", PROXY, True, limits.port_range, "enough ephemeral ports are available"),
    Check("accept_redirects", BACKEND, False, sysctls.accept_redirects, "ICMP redirects are not accepted"),
    Check("send_redirects", PROXY, False, sysctls.send_redirects, "ICMP redirects are not sent"),
    Check("keeper", ANY, False, services.keeper, "the keeper runs and is enabled at boot"),
    Check("networkd", ANY, True, services.networkd, "systemd-networkd leaves foreign rules and routes alone"),
)


def examine(facts: Facts, ignore: Iterable[str] = ()) -> list[Finding]:
    """The findings of every check that applies to the host, in the order of CHECKS; ids in ``ignore`` are left out."""
    ignored = frozenset(ignore)
    checks = (check for check in CHECKS if check.id not in ignored and check.applies_to(facts))
    return [finding for check in checks for finding in check.findings(facts)]
