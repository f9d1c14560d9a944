# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which tool removed our objects, as far as the host can tell, and what to do about it.

Evidence from strong to weak: the process that the kernel names with the change; a (re)start of a service known to do
so, just before the change; such a service that runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..host.runner import MissingCommand, Runner
from .monitor import Notification

# Names of commands as the kernel reports them: their first 15 characters (TASK_COMM_LEN).
IPTABLES = ("iptables", "ip6tables", "iptables-restor", "ip6tables-resto", "xtables-nft-mul")
# A service that was started or reloaded within so many seconds of the change is taken for its cause.
RECENT = 5.0
ROUTING, FILTERING = frozenset({"rule", "route", "address"}), frozenset({"marks", "services"})


@dataclass(frozen=True)
class Suspect:
    """A service that is known to remove foreign objects.

    ``processes`` are the names it runs as, ``tools`` those of the commands it starts. If it ``only_starts``, it changes
    nothing after its start.
    """

    unit: str
    name: str
    kinds: frozenset[str]
    remedy: str
    processes: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    only_starts: bool = False


SUSPECTS = (
    Suspect(
        "systemd-networkd.service",
        "systemd-networkd",
        ROUTING,
        "set ManageForeignRoutingPolicyRules=no and ManageForeignRoutes=no in /etc/systemd/networkd.conf.d",
        ("systemd-network",),
    ),
    Suspect(
        "NetworkManager.service",
        "NetworkManager",
        ROUTING,
        "exclude the interface (unmanaged-devices), or do not use l4proxy's tables and priorities in its profiles",
        ("NetworkManager",),
    ),
    Suspect(
        "keepalived.service",
        "keepalived",
        ROUTING,
        "do not use l4proxy's tables and priorities in virtual_routes and virtual_rules",
        ("keepalived",),
    ),
    Suspect(
        "firewalld.service",
        "firewalld",
        FILTERING,
        "make it flush only its own tables (FirewallBackend=nftables, FlushAllOnReload)",
        ("firewalld",),
    ),
    Suspect("ufw.service", "ufw", FILTERING, "do not flush foreign tables in /etc/ufw/*.rules", tools=IPTABLES),
    Suspect(
        "docker.service",
        "docker",
        FILTERING,
        "look for scripts that flush tables when docker starts",
        ("dockerd",),
        IPTABLES,
    ),
    Suspect(
        "nftables.service",
        "nftables.service",
        FILTERING,
        "in /etc/nftables.conf, flush only its own tables instead of `flush ruleset`",
        tools=("nft",),
        only_starts=True,
    ),
)


# Notifications that explain a repair although no tool removed anything.
HARMLESS = {"link": (ROUTING, "a link changed"), "neighbour": (FILTERING, "a proxy's MAC changed")}


@dataclass(frozen=True)
class Cause:
    """``who`` is text such as "perhaps ufw", empty if unknown; ``remedy`` is what to do about it."""

    who: str = ""
    remedy: str = ""


def find(
    kinds: Iterable[str], notifications: Iterable[Notification], run: Runner, sees_processes: bool, changed_at: float
) -> Cause:
    """The cause of a change at ``changed_at`` (CLOCK_MONOTONIC); ``kinds`` are those of the repaired objects."""
    notifications = list(notifications)
    for kind, (explained, who) in HARMLESS.items():
        if explained & set(kinds) and any(item.kind == kind for item in notifications):
            return Cause(who)
    processes = _processes(notifications, sees_processes)
    for suspect in SUSPECTS:
        if any(process in suspect.processes for process in processes):
            return Cause(suspect.name, suspect.remedy)
    active = _active(run, [suspect for suspect in SUSPECTS if suspect.kinds & set(kinds)])
    for suspect, times in active:
        if any(abs(changed_at - time) <= RECENT for time in times):
            return Cause(f"{suspect.name}, which started at that time", suspect.remedy)
    called = list(dict.fromkeys(processes))
    likely = [suspect for suspect, _times in active if _may_be(suspect, called)]
    if called and not likely:
        return Cause(f"a process named {', '.join(called)}")
    if not likely:
        return Cause()
    who = " or ".join(suspect.name for suspect in likely)
    by_tool = f" with {', '.join(called)}" if called else ""
    return Cause(f"perhaps {who}{by_tool}", "; ".join(suspect.remedy for suspect in likely))


def _may_be(suspect: Suspect, called: list[str]) -> bool:
    """Whether a running service that was not just started may have run these commands."""
    return not suspect.only_starts and all(name in suspect.tools for name in called)


def _processes(notifications: list[Notification], sees_processes: bool) -> list[str]:
    found = [item.process for item in notifications if item.process]
    for item in notifications:
        # The port of a process's first netlink socket is its process id (netlink_autobind).
        if sees_processes and item.port and item.port != os.getpid():
            found += _name_of(item.port)
    return found


def _name_of(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return [file.read().strip()]
    except OSError:
        return []  # the process has ended, or the port is no process id


def _active(run: Runner, suspects: list[Suspect]) -> list[tuple[Suspect, list[float]]]:
    """Running suspects, each with the times of its last start and state change, in seconds of CLOCK_MONOTONIC."""
    times = ("ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic", "StateChangeTimestampMonotonic")
    names = ",".join(("Id", "ActiveState", *times))
    try:
        done = run(["systemctl", "show", f"--property={names}", *(suspect.unit for suspect in suspects)], None)
    except MissingCommand:
        return []
    found = []
    for block in done.stdout.split("\n\n"):
        values = dict(re.findall(r"^(\w+)=(.*)$", block, re.MULTILINE))
        suspect = next((known for known in suspects if known.unit == values.get("Id")), None)
        if suspect and values.get("ActiveState") in ("active", "reloading", "activating"):
            found.append((suspect, [int(values.get(name) or 0) / 1e6 for name in times]))
    return found
