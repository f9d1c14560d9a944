# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sysctls that a host needs to forward for a document, so that nothing else on the host notices.

The kernel changes more than one value when forwarding is switched on or off (inet_forward_change in devinet.c,
addrconf_forward_change in addrconf.c):

    ip_forward          all.accept_redirects, to 0 or back to 1; forwarding of every interface
    all.forwarding      forwarding of every interface. It removes the default routes that router advertisements have
                        brought, unless the interface has accept_ra=2, and with accept_ra=1 ignores further ones

So these are held as well, from before forwarding is switched on until it is off again (``plan``).
"""

from __future__ import annotations

from ..document.documents import Document
from ..document.model import FAMILIES, Setting, Sysctl
from ..document.service_schema import SWITCHES
from ..host.sysctl import Sysctls

ACCEPT_REDIRECTS = "net.ipv4.conf.all.accept_redirects"


def wanted(document: Document, sysctls: Sysctls) -> tuple[Sysctl, ...]:
    """The sysctls of a document, and those of its ``forwarding`` on this host."""
    values: dict[str, str] = {}
    for family in document.forwarding:
        if not forwarded_before(document.owner, family, sysctls):
            values |= _around(document.owner, family, sysctls)
        values[SWITCHES[family]] = "1"
    listed = {sysctl.name for sysctl in document.sysctls}
    more = (Sysctl(name, value) for name, value in values.items() if name not in listed)
    return (*document.sysctls, *more)


def read(document: Document, sysctls: Sysctls) -> tuple[Setting, ...]:
    """The sysctls that a document needs or its owner holds, as they are. One whose interface is gone is no change."""
    settings = sysctls.read(document.owner, wanted(document, sysctls))
    return tuple(each for each in settings if each.value or "ipv6" not in document.forwarding or not _is_of_ra(each))


def _is_of_ra(setting: Setting) -> bool:
    return setting.name.endswith(".accept_ra")


def strangers(document: Document, sysctls: Sysctls) -> frozenset[str]:
    """The families whose packets are forwarded only because of the owner's services: it has switched forwarding on."""
    families = {*document.forwarding, *(service.family for service in document.services)}
    return frozenset(family for family in families if not forwarded_before(document.owner, family, sysctls))


def forwarded_before(owner: str, family: str, sysctls: Sysctls) -> bool:
    """Whether the host forwards packets of a family without this owner."""
    return sysctls.before(owner, SWITCHES[family]) not in ("0", None)


def conflicts(document: Document, sysctls: Sysctls) -> list[str]:
    """Errors where only some interfaces forward: on the others, forwarding would begin for everyone."""
    errors = []
    for family in FAMILIES:
        switch = SWITCHES[family]
        if family in document.forwarding and sysctls.value(switch) == sysctls.before(document.owner, switch) == "0":
            names = [f"net.{family}.conf.{link}.forwarding" for link in sysctls.links(family) if link != "default"]
            partly = [name for name in names if sysctls.value(name) == "1"]
            if partly and switch not in sysctls.held_by(document.owner):
                errors.append(
                    f"{switch} is 0, but {partly[0]} is 1: with services of the kernel datapath, all interfaces would "
                    f"forward; set {switch} to 1 if this host is a router, or {partly[0]} to 0"
                )
    return errors


def _around(owner: str, family: str, sysctls: Sysctls) -> dict[str, str]:
    """The sysctls that have to be held while forwarding is on, because it changes them or what they mean."""
    if family == "ipv4":
        return {ACCEPT_REDIRECTS: "0"}
    names = [f"net.ipv6.conf.{link}.accept_ra" for link in sysctls.links("ipv6") if link != "lo"]
    values = {name: sysctls.value(name) for name in names}
    held = set(sysctls.held_by(owner))
    # A tool that reads router advertisements itself (networkd) sets 0.
    return {name: "2" for name, value in values.items() if value == "1" or (value == "2" and name in held)}
