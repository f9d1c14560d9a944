# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Facts from /proc and socket ioctls, which need no package. They describe the calling thread's network namespace."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from ...host import files
from .model import Conntrack, Relay, Socket

# linux/sockios.h, linux/if.h
SIOCGIFFLAGS = 0x8913
IFF_UP = 1
# include/net/tcp_states.h, as /proc/net/tcp and udp print it (proc_pid_net(5)).
TCP_LISTEN, UDP_UNCONNECTED = "0A", "07"
TABLES = (("tcp", "tcp"), ("tcp6", "tcp"), ("udp", "udp"), ("udp6", "udp"))


def net(proc: str, name: str) -> str:
    """The path of a file in /proc/net for this thread's namespace, which can differ from that of the process."""
    return os.path.join(proc, "thread-self", "net", name)


def links() -> dict[str, bool]:
    """Interface names, each with whether it is up."""
    by_name = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as handle:
        for _index, name in socket.if_nameindex():
            try:
                request = struct.pack("16sH22x", name.encode(), 0)
                (flags,) = struct.unpack_from("H", fcntl.ioctl(handle, SIOCGIFFLAGS, request), 16)
            except OSError:
                continue  # the interface vanished after it was listed
            by_name[name] = bool(flags & IFF_UP)
    return by_name


def arp(proc: str) -> tuple[tuple[str, str], ...]:
    """(address, MAC) of the IPv4 neighbours whose MAC is known (arp(7))."""
    lines = (files.read(net(proc, "arp")) or "").splitlines()[1:]
    rows = (line.split() for line in lines)
    return tuple((row[0], row[3]) for row in rows if row[3] != "00:00:00:00:00:00")


def sockets(proc: str) -> tuple[Socket, ...]:
    """Listening TCP sockets, and UDP sockets without a peer."""
    return tuple(sorted(set(_inodes(proc).values()), key=lambda found: (found.protocol, found.port, found.address)))


def _inodes(proc: str) -> dict[str, Socket]:
    """The same by inode number, which links a socket to a process's descriptor."""
    by_inode = {}
    for name, protocol in TABLES:
        state = TCP_LISTEN if protocol == "tcp" else UDP_UNCONNECTED
        lines = (files.read(net(proc, name)) or "").splitlines()[1:]
        for fields in (line.split() for line in lines):
            if fields[3] == state:
                address, _colon, port = fields[1].partition(":")
                by_inode[fields[9]] = Socket(protocol, _address(address), int(port, 16))
    return by_inode


def relays(proc: str, programs: Collection[str]) -> tuple[Relay, ...]:
    """The listening sockets of processes with one of those names. Descriptors of other processes are not read."""
    listening: dict[str, Socket] = {}
    found = set()
    for pid in (name for name in os.listdir(proc) if name.isdigit()) if os.path.isdir(proc) else ():
        program = next((name for name in _names(proc, pid) if name in programs), None)
        if program is None:
            continue
        listening = listening or _inodes(proc)
        held = (listening.get(inode) for inode in _descriptors(proc, pid))
        found |= {Relay(socket, program, int(pid)) for socket in held if socket}
    return tuple(sorted(found, key=_relay_order))


def _relay_order(relay: Relay) -> tuple[Any, ...]:
    return relay.socket.protocol, relay.socket.port, relay.socket.address, relay.pid


def _names(proc: str, pid: str) -> tuple[str, ...]:
    """The first 15 characters of the program's name, from the kernel, and the name of its file."""
    try:
        comm = (files.read(os.path.join(proc, pid, "comm")) or "").strip()
        return comm, os.path.basename(os.readlink(os.path.join(proc, pid, "exe")))
    except OSError:  # the process ended, or is a kernel thread
        return ()


def _descriptors(proc: str, pid: str) -> Iterator[str]:
    """The inode numbers of a process's sockets: such a descriptor is a link to ``socket:[INODE]``."""
    directory = os.path.join(proc, pid, "fd")
    try:
        for name in os.listdir(directory):
            target = os.readlink(os.path.join(directory, name))
            if target.startswith("socket:["):
                yield target[8:-1]
    except OSError:
        return  # the process ended


def _address(text: str) -> str:
    """The kernel prints an address as 32-bit numbers in the machine's byte order."""
    words = (int(text[start : start + 8], 16) for start in range(0, len(text), 8))
    return str(ipaddress.ip_address(b"".join(struct.pack("=I", word) for word in words)))


def conntrack(proc: str) -> Conntrack | None:
    """None if the kernel does not track connections (yet)."""
    count, maximum = (
        files.read(os.path.join(proc, "sys/net/netfilter", f"nf_conntrack_{name}")) for name in ("count", "max")
    )
    if count is None or maximum is None:
        return None
    return Conntrack(int(count), int(maximum), sum(_statistics(proc, "drop")))


def _statistics(proc: str, column: str) -> Iterator[int]:
    """A column of /proc/net/stat/nf_conntrack: one number per CPU, in hexadecimal."""
    lines = (files.read(net(proc, "stat/nf_conntrack")) or "").splitlines()
    for line in lines[1:]:
        values = dict(zip(lines[0].split(), line.split()))
        yield int(values.get(column, "0"), 16)


@dataclass(frozen=True)
class Status:
    """The effective user id and capabilities of a process, and whether a signal or a debugger has stopped it."""

    uid: int
    capabilities: int
    stopped: bool = False


def status(proc: str, pid: int) -> Status | None:
    """From proc_pid_status(5); None if there is no such process."""
    try:
        text = files.read(os.path.join(proc, str(pid), "status"))
    except OSError:  # the process ended meanwhile
        return None
    lines = dict(line.partition(":")[::2] for line in (text or "").splitlines())
    if "CapEff" not in lines:
        return None
    stopped = lines.get("State", "").strip()[:1] in ("T", "t")
    return Status(int(lines["Uid"].split()[1]), int(lines["CapEff"], 16), stopped)
