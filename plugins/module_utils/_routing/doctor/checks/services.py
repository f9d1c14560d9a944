# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What runs: the keeper, the forwarder, and services that undo what the keeper does."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from .. import rule_matching
from ..facts.model import Facts, spelled
from ..finding import Finding, fail, skip, warn

KEEPER, FORWARDER, NETWORKD = "l4proxy-keeper.service", "l4proxy-forwarder.service", "systemd-networkd.service"
# CAP_NET_RAW of linux/capability.h
CAP_NET_RAW = 1 << 13


def keeper(facts: Facts) -> Iterator[Finding]:
    unit = (facts.units or {}).get(KEEPER)
    if unit is None:
        yield skip("systemd does not run here, so nothing is known of the keeper")
    elif unit.load != "loaded":
        yield warn(KEEPER, "the keeper is not installed", "nothing restores the path after a reboot", "the keeper role")
    elif unit.active != "active" or unit.enabled != "enabled":
        yield warn(
            KEEPER,
            f"the keeper is {unit.active} and {unit.enabled or 'not enabled'}",
            "what a reboot or another tool takes away is not put back",
            f"`systemctl enable --now {KEEPER}`",
        )


def contested(facts: Facts) -> Iterator[Finding]:
    """The keeper tells what is undone as often as it is put back."""
    contest = facts.contest
    if contest:
        who = contest.who or "another tool"
        yield fail(
            contest.owner or KEEPER,
            f"{who} undoes what the keeper puts back, {contest.times} times in a row: {'; '.join(contest.changes)}",
            "the path is broken from each time until the keeper has acted, and it acts ever more seldom",
            f"make {who} leave our rules alone; `systemctl status {KEEPER}` says more",
        )


def networkd(facts: Facts) -> Iterator[Finding]:
    unit = (facts.units or {}).get(NETWORKD)
    if unit is not None and unit.active == "active" and not facts.drop_ins:
        yield warn(
            NETWORKD,
            "systemd-networkd runs and takes away rules and routes that it does not know when it restarts",
            "the path is broken until the keeper has put them back",
            "in /etc/systemd/networkd.conf.d/, [Network] ManageForeignRoutingPolicyRules=no and "
            "ManageForeignRoutes=no; then `systemctl restart systemd-networkd`",
        )


def forwarder(facts: Facts) -> Iterator[Finding]:
    ours = facts.forwarder
    if ours is None:
        return
    if ours.error:
        yield fail(
            ours.path,
            f"{ours.path} {ours.error}",
            "the forwarder does not start, or does not reload, with it",
            f"`l4proxy check {ours.path}`, then run the forwarder role again",
        )
    elif ours.pid is None:
        yield fail(
            FORWARDER,
            "the forwarder does not run",
            "nobody accepts the clients of this proxy",
            f"`systemctl enable --now {FORWARDER}`; `journalctl -u {FORWARDER}` says why it ended",
        )
    elif ours.stopped:
        yield fail(
            FORWARDER,
            f"the forwarder (process {ours.pid}) is stopped by a signal or a debugger",
            "its workers serve, but nobody replaces one that ends, and it neither reloads nor answers",
            f"`kill -CONT {ours.pid}`, or end the debugger",
        )
    elif ours.capabilities is not None and not ours.capabilities & CAP_NET_RAW:
        yield fail(
            FORWARDER,
            f"the forwarder (process {ours.pid}) has no CAP_NET_RAW",
            "it may not use the clients' addresses as a source, so every connection to a backend is refused (EPERM)",
            "AmbientCapabilities=CAP_NET_RAW CAP_NET_BIND_SERVICE in its unit, as the forwarder role writes it",
        )


def listening(facts: Facts) -> Iterator[Finding]:
    ours = facts.forwarder
    if ours is None or ours.error or ours.pid is None:
        return
    there = {(one.protocol, one.address, one.port) for one in facts.sockets}
    for one in ours.listeners:
        missing = [port for port in one.ports if (one.protocol, one.address, port) not in there]
        if missing:
            yield fail(
                f"{one.protocol} {spelled(missing)}",
                f"nothing listens on {one.address} {one.protocol} port {spelled(missing)}, which {ours.path} names",
                "clients of that service are refused",
                "`l4proxy reload --wait`, which says why not",
            )
        elif facts.addresses is not None and not one.is_wildcard and not _is_own(one.address, facts.own):
            yield warn(
                f"{one.protocol} {spelled(list(one.ports))}",
                f"{ours.path} has a service listen on {one.address}, which is not an address of this host",
                "nobody reaches the service there until this host has the address",
                f"correct `listen`, or give this host {one.address}; a virtual address is absent on all hosts but one",
            )


def _is_own(address: str, own: frozenset[str]) -> bool:
    return address in own or ipaddress.ip_address(address).is_loopback


def families(facts: Facts) -> Iterator[Finding]:
    """The config and the document are of one run: each backend of the one is in the other."""
    if facts.forwarder is None or not facts.local_delivery:
        return
    rules = [rule for one in facts.local_delivery for rule in rule_matching.lookups(one)]
    delivered = {rule_matching.host_of(rule.src) for rule in rules}
    by_mark = any(rule.fwmark for rule in rules)
    for address in facts.forwarder.backends:
        if address not in delivered and not by_mark:
            yield fail(
                address,
                f"{facts.forwarder.path} names backend {address}, for which there is no rule of local delivery",
                "its replies to clients are not taken in",
                "run the forwarder role on this host without leaving out forwarder_local_delivery",
            )
