# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Listens for VRRP advertisements on a host's links, compares them with its virtual IPs, and says which it holds."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Callable

PROTOCOL, ADVERTISEMENT = 112, 1
GROUPS = {socket.AF_INET: "224.0.0.18", socket.AF_INET6: "ff02::12"}
FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
# Seconds after which the host's own addresses are read again.
SLICE = 0.2


@dataclass(frozen=True)
class Advert:
    """One VRRP advertisement, as it arrived on ``interface`` from ``source``."""

    interface: str
    family: str
    source: str
    vrid: int
    priority: int
    version: int
    addresses: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "addresses": list(self.addresses)}


def parse(payload: bytes, interface: str, family: str, source: str) -> Advert | None:
    """Read an advertisement of VRRP version 2 or 3 without its IP header; None if it is none."""
    if len(payload) < 8 or payload[0] & 0xF != ADVERTISEMENT or payload[0] >> 4 not in (2, 3):
        return None
    size = 4 if family == "ipv4" else 16
    parts = [payload[8 + number * size : 8 + (number + 1) * size] for number in range(payload[3])]
    addresses = tuple(str(ip_address(part)) for part in parts if len(part) == size)
    return Advert(interface, family, source, payload[1], payload[2], payload[0] >> 4, addresses)


def _open(interface: str, family: str) -> socket.socket:
    """A socket that receives VRRP of one family on an interface: sent to the multicast group or to this host."""
    kind = FAMILIES[family]
    receiver = socket.socket(kind, socket.SOCK_RAW, PROTOCOL)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
    index = struct.pack("@i", socket.if_nametoindex(interface))
    group = socket.inet_pton(kind, GROUPS[kind])
    if kind == socket.AF_INET:
        receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + bytes(4) + index)
    else:
        receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + index)
    return receiver


def listen(
    links: Iterable[tuple[str, str]], seconds: float, enough: Callable[[Collection[Advert]], bool] | None = None
) -> list[Advert]:
    """Receive advertisements for ``seconds``, or until they are ``enough``; each router is in the result once.

    :param links: (interface, family).
    :raises OSError: an interface does not exist, or raw sockets are not permitted.
    """
    found: dict[tuple[str, str, str, int], Advert] = {}
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        receivers = {stack.enter_context(_open(*link)): link for link in dict.fromkeys(links)}
        while receivers and (left := deadline - time.monotonic()) > 0 and not (enough and enough(found.values())):
            for receiver in select.select(list(receivers), [], [], min(left, SLICE))[0]:
                interface, family = receivers[receiver]
                packet, sender = receiver.recvfrom(65535)
                # Raw IPv4 sockets have the IP header, IPv6 ones do not.
                payload = packet[4 * (packet[0] & 0xF) :] if family == "ipv4" and packet else packet
                advert = parse(payload, interface, family, sender[0].partition("%")[0])
                if advert:
                    found[interface, family, advert.source, advert.vrid] = advert
    return list(found.values())


def holds(address: str) -> bool:
    """Whether this host has an address: then it is also the source of what the host sends to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:  # no route
            return False
        return bool(probe.getsockname()[0] == address)


def have_holders(virtual_ips: Sequence[Mapping[str, Any]], adverts: Collection[Advert]) -> bool:
    """Whether each virtual IP is on this host, or a peer advertises it."""
    heard = {(each.interface, each.family, each.vrid) for each in adverts if each.priority}
    return all(
        all(map(holds, family["addresses"])) or (family["interface"], family["family"], one["vrid"]) in heard
        for one in virtual_ips
        for family in one["families"]
    )


def links_of(virtual_ips: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The (interface, family) pairs of virtual IPs, as the filter ``virtual_ips`` derives them."""
    return [(family["interface"], family["family"]) for one in virtual_ips for family in one["families"]]


def clashes(virtual_ips: Sequence[Mapping[str, Any]], adverts: Sequence[Advert]) -> Iterator[str]:
    """A sentence for each advertisement of others that has a vrid or an address of ours."""
    for one in virtual_ips:
        for family in one["families"]:
            ours = {family["source"], *family["peers"].values()}
            link = (family["interface"], family["family"])
            others = [each for each in adverts if (each.interface, each.family) == link and each.source not in ours]
            used = ", ".join(map(str, sorted({each.vrid for each in others})))
            for each in others:
                what = f"{each.source} advertises {', '.join(each.addresses) or 'no address'}"
                if each.vrid == one["vrid"]:
                    yield (
                        f"vrid {each.vrid} of {one['name']} is in use on {link[0]}: {what} with it. Set another vrid "
                        f"for {one['name']} in l4proxy_virtual_ips; not {used}"
                    )
                elif set(each.addresses) & set(family["addresses"]):
                    yield (
                        f"an address of {one['name']} is in use on {link[0]}: {what} with vrid {each.vrid}. Stop that "
                        f"router, or give {one['name']} another address in l4proxy_virtual_ips"
                    )
