# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ancillary data of datagrams, sent to and received from the real kernel on the loopback."""

from __future__ import annotations

import errno
import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.udp import ancillary

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def sock(family, address=""):
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.settimeout(20)
    made.bind((address, 0))
    return made


@pytest.mark.parametrize(
    ("source", "destination"), [("127.0.0.7", "127.0.0.9"), ("127.0.0.1", "127.0.0.1"), ("::1", "::1")]
)
def test_ancillary_data_sets_the_source_of_a_datagram_and_reports_its_destination(source, destination):
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    with sock(family) as sender, sock(family) as receiver:
        receiver.setsockopt(*ancillary.REPORT_DESTINATION[family], 1)
        to = destination, receiver.getsockname()[1]
        sender.sendmsg([b"hello"], ancillary.leaving_from(socket.inet_pton(family, source)), 0, to)
        data, messages, flags, peer = receiver.recvmsg(100, ancillary.SPACE)
        assert (data, flags, peer[:2]) == (b"hello", 0, (source, sender.getsockname()[1]))
    assert messages[0][2][ancillary.DESTINATION[family]] == socket.inet_pton(family, destination)


@pytest.mark.parametrize("family", LOOPBACK)
@pytest.mark.parametrize("data", [b"", b"some data"])
def test_an_icmp_error_has_its_errno_and_the_source_of_the_datagram(family, data):
    address = LOOPBACK[family]
    with sock(family, address) as closed:
        target = closed.getsockname()[:2]
    with sock(family) as sender:
        sender.setsockopt(*ancillary.REPORT_DESTINATION[family], 1)
        sender.setsockopt(*ancillary.REPORT_ERRORS[family], 1)
        sender.sendto(data, target)
        _data, messages, _flags, about = sender.recvmsg(0, ancillary.ERROR_SPACE, socket.MSG_ERRQUEUE)
    assert ancillary.read_error(family, messages) == (errno.ECONNREFUSED, socket.inet_pton(family, address))
    assert about[:2] == target


def test_an_error_of_this_host_has_no_errno():
    local = bytes(4 * [0]) + b"\1" + bytes(11)  # SO_EE_ORIGIN_LOCAL
    assert ancillary.read_error(socket.AF_INET, [(socket.IPPROTO_IP, ancillary.IP_RECVERR, local)]) == (0, None)
