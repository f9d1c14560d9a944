# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""UDP sockets on the loopback. Kernel tests cover the spoofing ones, which need a namespace."""

from __future__ import annotations

import errno
import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp import udp_sockets

PAIRS = [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("0.0.0.0", "0.0.0.0"), ("::", "::"), ("0.0.0.0", "::")]


@pytest.mark.parametrize(("address", "other_address"), PAIRS)
def test_several_listeners_share_an_address_and_both_wildcard_addresses_a_port(address, other_address):
    with udp_sockets.listener(address, 0) as one, udp_sockets.listener(other_address, one.getsockname()[1]) as other:
        assert other.getsockname()[1] == one.getsockname()[1]
        assert address != other_address or one.getsockname() == other.getsockname()
        assert one.getblocking() is False


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_no_other_socket_can_bind_the_port_of_an_upstream_socket(family):
    with udp_sockets.upstream(family, spoofing=False) as one:
        with pytest.raises(OSError) as caught:
            udp_sockets.upstream(family, port=one.getsockname()[1], spoofing=False)
        assert caught.value.errno == errno.EADDRINUSE
