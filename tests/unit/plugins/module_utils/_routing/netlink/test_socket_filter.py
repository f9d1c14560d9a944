# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The filter program. tests/kernel/keeper/test_repairs.py tests what the kernel passes."""

from __future__ import annotations

import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink import socket_filter

PROGRAMS = [
    socket_filter.program({201, 202}, range(20100, 20356), ["198.18.0.11", "2001:db8::11"], 1101),
    socket_filter.arp_replies(["198.18.0.11", "198.18.0.12"]),
    socket_filter.connections_to(["198.18.0.11", "198.18.0.12", "2001:db8::11"]),
]


@pytest.mark.parametrize("lines", PROGRAMS)
def test_every_jump_stays_inside_the_program_and_every_path_returns(lines):
    for number, (code, if_true, if_false, value) in enumerate(lines):
        tests = {one: [if_true, if_false] for one in (socket_filter.JUMP_IF_EQUAL, socket_filter.JUMP_IF_GREATER)}
        steps = {socket_filter.JUMP: [value], **tests}.get(code, [])
        assert all(number + 1 + step < len(lines) for step in steps), number
    assert lines[-1][0] == socket_filter.RETURN


def test_a_program_that_is_too_long_passes_everything():
    assert socket_filter.program((), range(1, 3000), ()) == [(socket_filter.RETURN, 0, 0, socket_filter.PASS)]


def test_the_kernel_accepts_the_program():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        socket_filter.attach(netlink, socket_filter.program({202}, {20111}, ["198.18.0.11"], 1101))
        socket_filter.attach(netlink, socket_filter.program((), (), ()))
