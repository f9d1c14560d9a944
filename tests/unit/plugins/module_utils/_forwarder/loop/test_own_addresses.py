# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the addresses of this host are read, and which listeners it lacks an address for."""

from __future__ import annotations

import socket
import struct

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import service as service_config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop import own_addresses

IF_INET6 = """\
00000000000000000000000000000001 01 80 10 80       lo
20010db8000000000000000000000011 02 40 00 80     eth0
fe80000000000000000000fffe000011 02 40 20 80     eth0
"""


def test_the_kernels_lists_of_both_families_are_parsed():
    assert own_addresses.parse_if_inet6(IF_INET6) == ["::1", "2001:db8::11", "fe80::ff:fe00:11"]

    def entry(name, family, address):
        data = name.ljust(16, b"\0") + struct.pack("HH", family, 0) + socket.inet_aton(address)
        return data.ljust(own_addresses.IFREQ_SIZE, b"\0")

    data = entry(b"lo", 2, "127.0.0.1") + entry(b"eth0", 2, "198.18.0.11") + entry(b"x", 10, "1.2.3.4")
    assert own_addresses.parse_ifconf(data) == ["127.0.0.1", "198.18.0.11"]
    assert own_addresses.parse_ifconf(b"") == []


def test_absent_listeners_are_those_whose_address_the_kernel_does_not_treat_as_local():
    addresses = ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "198.51.100.9", "2001:db8::9"]
    services = [service_config.Service("web", tuple(service_config.Listener(address, 80) for address in addresses), ())]
    assert own_addresses.absent(services) == {"web": ["198.51.100.9:80", "[2001:db8::9]:80"]}
    assert "127.0.0.1" in own_addresses.own_addresses()
