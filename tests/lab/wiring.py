# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Namespaces, bridges and veth pairs, from which both labs build their networks.

Commands are made by pure functions and run in batches: one ``ip`` process for each namespace, not for each command.
A namespace is known by its name under /run/netns, also that of a container (``ip netns attach``).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.lab.topology import Host, Network, Topology, load

NETNS_DIR = Path("/run/netns")
CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h

_libc = ctypes.CDLL(None, use_errno=True)

#: The kernel's defaults: a new namespace copies those of IPv4 from the machine, which may have changed them.
#: No duplicate address detection: addresses would be tentative for a second, and tests flaky.
HOST_SYSCTLS = {
    "net.ipv4.ip_forward": "0",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
    "net.ipv4.conf.all.accept_redirects": "1",
    "net.ipv4.conf.default.accept_redirects": "1",
    "net.ipv4.conf.all.send_redirects": "1",
    "net.ipv4.conf.default.send_redirects": "1",
    "net.ipv4.conf.all.arp_ignore": "0",
    "net.ipv4.conf.default.arp_ignore": "0",
    "net.ipv4.conf.all.src_valid_mark": "0",
    "net.ipv4.conf.default.src_valid_mark": "0",
    "net.ipv6.conf.all.disable_ipv6": "0",
    "net.ipv6.conf.default.disable_ipv6": "0",
    "net.ipv6.conf.all.accept_dad": "0",
    "net.ipv6.conf.default.accept_dad": "0",
    "net.ipv6.conf.default.accept_ra": "0",
}
ROUTER_SYSCTLS = {"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"}
#: Frames the switch carries must not pass through iptables (the files exist only where br_netfilter does).
SWITCH_SYSCTLS = {
    "net.bridge.bridge-nf-call-iptables": "0",
    "net.bridge.bridge-nf-call-ip6tables": "0",
    "net.bridge.bridge-nf-call-arptables": "0",
    "net.ipv6.conf.default.disable_ipv6": "1",
}


class CommandFailed(subprocess.CalledProcessError):
    """A command failed; the message contains its output."""

    def __str__(self) -> str:
        said = "\n".join(text.strip() for text in (self.stdout, self.stderr) if text)
        return f"{super().__str__()}\n{said}"


def run(argv: list[str], *, check: bool = True, timeout: float = 60, **options) -> subprocess.CompletedProcess:
    """subprocess.run with captured text; an error shows that text."""
    done = subprocess.run(argv, check=False, timeout=timeout, text=True, capture_output=True, **options)
    if check and done.returncode:
        raise CommandFailed(done.returncode, argv, done.stdout, done.stderr)
    return done


def ip_batch(commands: list[str], netns: str | None = None) -> None:
    """Run ``ip`` commands in one process, in the named namespace; the first failure raises CommandFailed."""
    if commands:
        where = ["-netns", netns] if netns else []
        run(["ip", *where, "-batch", "-"], input="\n".join(commands) + "\n")


# --- what to build: pure ---------------------------------------------------------------------------------------------


def bridge_commands(networks: list[Network]) -> list[str]:
    """Commands for the switch namespace: a bridge for each network, which forwards at once."""
    return [
        command
        for net in networks
        for command in (
            f"link add {net.bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            f"link set {net.bridge} up",
        )
    ]


def port_commands(host: Host, netns: str) -> list[str]:
    """Commands for the switch namespace: the host's cables; the other ends are eth0, eth1 ... in its namespace."""
    return [
        command
        for leg in host.interfaces
        for command in (
            f"link add {leg.port} type veth peer name {leg.dev} address {leg.mac} netns {netns}",
            f"link set {leg.port} master {leg.network.bridge} up",
        )
    ]


def host_commands(topology: Topology, host: Host) -> list[str]:
    """Commands for the host's namespace: links up, addresses, a default route to the router of the first network."""
    commands = ["link set lo up"]
    for leg in host.interfaces:
        commands += [
            f"addr add {leg.ipv4}/{leg.network.ipv4.prefixlen} brd + dev {leg.dev}",
            f"link set {leg.dev} up",
            f"addr add {leg.ipv6}/{leg.network.ipv6.prefixlen} dev {leg.dev} nodad",
        ]
    gateway = topology.router_on(host.interfaces[0].network.name)
    if gateway and not host.is_router:
        commands += [
            f"route add default via {gateway.ipv4} dev {host.dev}",
            f"route add ::/0 via {gateway.ipv6} dev {host.dev}",
        ]
    return commands


# --- doing it --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def inside(netns: str) -> Iterator[None]:
    """Move the calling thread into a namespace and back: its sockets and /proc/sys/net are then those of that host."""
    # /proc/thread-self, not /proc/self: setns moves one thread, and this may not be the first one.
    with open("/proc/thread-self/ns/net", "rb") as home, open(NETNS_DIR / netns, "rb") as away:
        _setns(away.fileno())
        try:
            yield
        finally:
            _setns(home.fileno())


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")


def write_sysctls(values: dict[str, str]) -> None:
    """Write sysctls of the calling thread's namespace; skip names that this kernel does not have."""
    for name, value in values.items():
        path = Path("/proc/sys", *name.split("."))
        if path.exists():
            path.write_text(value, encoding="ascii")


def make_switch(topology: Topology, netns: str) -> None:
    """Make the switch: a namespace with a bridge for each network."""
    ip_batch([f"netns add {netns}"])
    with inside(netns):
        write_sysctls(SWITCH_SYSCTLS)
    ip_batch(bridge_commands(list(topology.networks.values())), netns)


def make_hosts(hosts: list[Host], netns_of: Callable[[str], str]) -> None:
    """Make a namespace for each host, with the kernel's defaults and without cables."""
    ip_batch([f"netns add {netns_of(host.name)}" for host in hosts])
    for host in hosts:
        with inside(netns_of(host.name)):
            write_sysctls({**HOST_SYSCTLS, **(ROUTER_SYSCTLS if host.is_router else {})})


def connect_hosts(topology: Topology, hosts: list[Host], switch: str, netns_of: Callable[[str], str]) -> None:
    """Connect hosts to the switch and configure their interfaces. No sysctls: a booted host may have set them."""
    ip_batch([command for host in hosts for command in port_commands(host, netns_of(host.name))], switch)
    for host in hosts:
        ip_batch(host_commands(topology, host), netns_of(host.name))


def namespaces(prefix: str) -> list[str]:
    """The names of the lab's existing namespaces; those of a longer prefix do not count."""
    candidates = [f"{prefix}-{name}" for name in [*load().hosts, "switch"]]
    return sorted(name for name in candidates if (NETNS_DIR / name).exists())


def remove_namespaces(names: list[str]) -> None:
    """Remove namespaces; their veths and bridges go with them."""
    ip_batch([f"netns del {name}" for name in names if (NETNS_DIR / name).exists()])
