# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who took our objects away, as far as a host can tell, and what to do about it.

From the best evidence to the weakest: the process the kernel names with the change; a service known for doing so that
was (re)started just before; such services that run here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..host.runner import MissingCommand, Runner
from .monitor import News

# As the kernel knows the commands: a name has 15 characters (TASK_COMM_LEN).
IPTABLES = ("iptables", "ip6tables", "iptables-restor", "ip6tables-resto", "xtables-nft-mul")
# A service that was started or reloaded so many seconds before the news is taken for the one that did it.
RECENT = 5.0
ROUTING, FILTERING = frozenset({"rule", "route", "address"}), frozenset({"marks"})


@dataclass(frozen=True)
class Suspect:
    """A service that is known to remove what it did not make.

    ``processes`` are the names it runs as, ``tools`` those of the commands it starts. One that ``only_starts`` does
    nothing after it was started.
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
        "leave the interface to other tools (unmanaged-devices), or keep tables and priorities of l4proxy out of its "
        "profiles",
        ("NetworkManager",),
    ),
    Suspect(
        "keepalived.service",
        "keepalived",
        ROUTING,
        "keep tables and priorities of l4proxy out of virtual_routes and virtual_rules",
        ("keepalived",),
    ),
    Suspect(
        "firewalld.service",
        "firewalld",
        FILTERING,
        "let it flush its own tables only (FirewallBackend=nftables, FlushAllOnReload)",
        ("firewalld",),
    ),
    Suspect("ufw.service", "ufw", FILTERING, "keep flushes of other tables out of /etc/ufw/*.rules", tools=IPTABLES),
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
        "replace `flush ruleset` in /etc/nftables.conf by a flush of its own tables",
        tools=("nft",),
        only_starts=True,
    ),
)


# News that explain a repair without anybody's having taken something away.
NOBODY = {"link": (ROUTING, "a link had changed"), "neighbour": (FILTERING, "a proxy had another MAC")}


@dataclass(frozen=True)
class Verdict:
    """``who`` is text such as "perhaps ufw", empty where nothing is known; ``remedy`` what to do about it."""

    who: str = ""
    remedy: str = ""


def find(kinds: Iterable[str], news: Iterable[News], run: Runner, sees_processes: bool, now: float) -> Verdict:
    """Who is behind the news; ``kinds`` are those of the objects that were repaired, ``now`` is CLOCK_MONOTONIC."""
    news = list(news)
    for kind, (explained, who) in NOBODY.items():
        if explained & set(kinds) and any(item.kind == kind for item in news):
            return Verdict(who)
    processes = _processes(news, sees_processes)
    for suspect in SUSPECTS:
        if any(process in suspect.processes for process in processes):
            return Verdict(suspect.name, suspect.remedy)
    active = _active(run, [suspect for suspect in SUSPECTS if suspect.kinds & set(kinds)])
    for suspect, times in active:
        if any(abs(now - time) <= RECENT for time in times):
            return Verdict(f"{suspect.name}, which was started at that time", suspect.remedy)
    called = list(dict.fromkeys(processes))
    likely = [suspect for suspect, _times in active if _may_be(suspect, called)]
    if called and not likely:
        return Verdict(f"a process named {', '.join(called)}")
    if not likely:
        return Verdict()
    who = " or ".join(suspect.name for suspect in likely)
    by_tool = f" by way of {', '.join(called)}" if called else ""
    return Verdict(f"perhaps {who}{by_tool}", "; ".join(suspect.remedy for suspect in likely))


def _may_be(suspect: Suspect, called: list[str]) -> bool:
    """Whether a service that runs, and was not just started, may have had these commands run."""
    return not suspect.only_starts and all(name in suspect.tools for name in called)


def _processes(news: list[News], sees_processes: bool) -> list[str]:
    found = [item.process for item in news if item.process]
    for item in news:
        # The kernel gives a process's first netlink socket the process's own number (netlink_autobind).
        if sees_processes and item.port and item.port != os.getpid():
            found += _name_of(item.port)
    return found


def _name_of(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return [file.read().strip()]
    except OSError:
        return []  # it has ended, or it was no process's number


def _active(run: Runner, suspects: list[Suspect]) -> list[tuple[Suspect, list[float]]]:
    """Those that are running, with when they were started or changed state, in seconds of CLOCK_MONOTONIC."""
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
