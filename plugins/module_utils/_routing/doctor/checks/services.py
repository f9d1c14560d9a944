# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Services of this host: the keeper, the forwarder, and tools that revert what the keeper repairs."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from .. import rule_matching
from ..facts.model import Facts, format_ports
from ..facts.systemd import FORWARDER, KEEPER, NETWORKD
from ..finding import Finding, fail, skip, warn

# CAP_NET_RAW of linux/capability.h
CAP_NET_RAW = 1 << 13
OLD = 86400  # seconds after which old code is a finding


def keeper(facts: Facts) -> Iterator[Finding]:
    unit = (facts.units or {}).get(KEEPER)
    if unit is None:
        yield skip("systemd does not run here, so the state of the keeper is unknown")
    elif unit.load != "loaded":
        yield warn(
            KEEPER,
            "the keeper is not installed",
            "nothing restores the path after a reboot",
            "run the keeper role on this host",
        )
    elif unit.active != "active" or unit.enabled != "enabled":
        yield warn(
            KEEPER,
            f"the keeper is {unit.active} and {unit.enabled or 'not enabled'}",
            "rules and routes that a reboot or another tool removes are not restored",
            f"`systemctl enable --now {KEEPER}`",
        )


def contested(facts: Facts) -> Iterator[Finding]:
    contest = facts.contest
    if contest:
        who = contest.who or "another tool"
        yield fail(
            contest.owner or KEEPER,
            f"{who} reverted the keeper's repair {contest.times} times in a row: {'; '.join(contest.changes)}",
            "the path is broken until the keeper's next repair, and the keeper repairs less and less often",
            f"configure {who} to leave foreign rules and routes alone; `systemctl status {KEEPER}` has details",
        )


def networkd(facts: Facts) -> Iterator[Finding]:
    unit = (facts.units or {}).get(NETWORKD)
    if unit is not None and unit.active == "active" and not facts.drop_ins:
        yield warn(
            NETWORKD,
            "systemd-networkd removes foreign rules and routes whenever it restarts",
            "the path is then broken until the keeper has restored them",
            "in /etc/systemd/networkd.conf.d/, [Network] ManageForeignRoutingPolicyRules=no and "
            "ManageForeignRoutes=no; then `systemctl restart systemd-networkd`",
        )


def forwarder(facts: Facts) -> Iterator[Finding]:
    config = facts.forwarder
    if config is None:
        return
    if config.error:
        yield fail(
            config.path,
            f"{config.path} {config.error}",
            "the forwarder cannot start or reload with this config",
            f"`l4proxy check {config.path}`, then run the forwarder role again",
        )
    elif config.pid is None:
        yield fail(
            FORWARDER,
            "the forwarder does not run",
            "this proxy accepts no clients",
            f"`systemctl enable --now {FORWARDER}`; `journalctl -u {FORWARDER}` shows why it ended",
        )
    elif config.stopped:
        yield fail(
            FORWARDER,
            f"the forwarder (process {config.pid}) is stopped by a signal or a debugger",
            "its workers still serve, but a worker that ends is not replaced, and reload and status do not work",
            f"`kill -CONT {config.pid}`, or detach the debugger",
        )
    elif config.capabilities is not None and not config.capabilities & CAP_NET_RAW:
        yield fail(
            FORWARDER,
            f"the forwarder (process {config.pid}) has no CAP_NET_RAW",
            "it may not use clients' addresses as the source, so every connection to a backend fails (EPERM)",
            "set AmbientCapabilities=CAP_NET_RAW CAP_NET_BIND_SERVICE in its unit, as the forwarder role does",
        )


def listening(facts: Facts) -> Iterator[Finding]:
    config = facts.forwarder
    if config is None or config.error or config.pid is None:
        return
    for name, reason in config.failed:
        yield fail(
            name,
            f"the forwarder cannot listen on {name}: {reason}",
            "clients of that address are refused, or reach another program",
            "`ss -lntup` shows which program has the port: stop it, or change its port or `listen`; the forwarder "
            "tries again every few seconds",
        )
    sockets = {(socket.protocol, socket.address, socket.port) for socket in facts.sockets}
    sockets |= set(_endpoints(config.failed))
    for wanted in config.listeners:
        missing = [port for port in wanted.ports if (wanted.protocol, wanted.address, port) not in sockets]
        if missing:
            ports = format_ports(missing)
            yield fail(
                f"{wanted.protocol} {ports}",
                f"nothing listens on {wanted.address} {wanted.protocol} port {ports}, which {config.path} configures",
                "clients of that service are refused",
                "`l4proxy reload --wait`, which shows the reason",
            )
        elif facts.addresses is not None and not wanted.is_wildcard and not _is_own(wanted.address, facts.own):
            yield warn(
                f"{wanted.protocol} {format_ports(wanted.ports)}",
                f"a service in {config.path} listens on {wanted.address}, which is not an address of this host",
                "clients cannot reach the service here until this host has the address",
                f"correct `listen`, or add {wanted.address} to this host; for a virtual address held by another host, "
                "do nothing",
            )


def _endpoints(failed: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, int]]:
    """(protocol, address, port) of what could not be bound, without the admin socket."""
    for name, _reason in failed:
        protocol, _colon, where = name.partition(":")
        address, _colon, port = where.rpartition(":")
        if port.isdigit():
            yield protocol, address.strip("[]"), int(port)


def _is_own(address: str, own: frozenset[str]) -> bool:
    return address in own or ipaddress.ip_address(address).is_loopback


def old_code(facts: Facts) -> Iterator[Finding]:
    """An upgrade has no deadline, so connections may keep the code of an earlier version in use, with its faults."""
    config = facts.forwarder
    for old in config.old_code if config else ():
        if old.age > OLD:
            yield warn(
                f"generation {old.generation}",
                f"{old.sessions} connections are served by old code ({_version(old.version)}, generation"
                f" {old.generation}), which was replaced {old.age / 3600:.0f} hours ago",
                "faults of the old version, also those of security, are still there for these connections",
                f"`l4proxy kill --generation {old.generation}` ends them; a run with forwarder_drain_timeout=60 does so"
                " on every proxy",
            )


def state_saved(facts: Facts) -> Iterator[Finding]:
    if facts.forwarder and facts.forwarder.not_saved:
        yield warn(
            FORWARDER,
            f"the forwarder cannot save its state: {facts.forwarder.not_saved}",
            "after a stop or reboot, drained backends get connections again, and counters go back to the last save",
            "make room on the file system, or make it writable; the forwarder tries again every 30 seconds",
        )


def _version(version: str | None) -> str:
    return f"version {version}" if version else "of an unknown version"


def families(facts: Facts) -> Iterator[Finding]:
    """Config and document must come from the same run: each backend of the config needs a rule of the document."""
    if facts.forwarder is None or not facts.local_delivery:
        return
    rules = [rule for document in facts.local_delivery for rule in rule_matching.lookups(document)]
    delivered = {rule_matching.host_of(rule.src) for rule in rules}
    by_mark = any(rule.fwmark for rule in rules)
    for address in facts.forwarder.backends:
        if address not in delivered and not by_mark:
            yield fail(
                address,
                f"{facts.forwarder.path} names backend {address}, which has no local delivery rule",
                "the kernel does not deliver this backend's replies to the forwarder",
                "run the whole forwarder role on this host, including local delivery (tag forwarder_local_delivery)",
            )
