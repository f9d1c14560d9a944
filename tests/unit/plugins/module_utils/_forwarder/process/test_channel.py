# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisor's line to a child: messages stay apart, a full or closed line blocks nobody, a bad one ends nobody."""

from __future__ import annotations

import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import channel


def test_messages_arrive_one_by_one_and_the_end_is_seen():
    ours, theirs = channel.pair()
    assert theirs.receive() == ([], False)
    for number in range(3):
        assert ours.send({"cover": [number]})
    assert theirs.receive() == ([{"cover": [number]} for number in range(3)], False)
    ours.send({"last": 1})
    ours.close()
    assert theirs.receive() == ([{"last": 1}], True)
    assert theirs.send({"too": "late"}) is False
    theirs.close()


def test_a_line_nobody_reads_does_not_block():
    ours, theirs = channel.pair()
    sent = 0
    while ours.send({"padding": "x" * 60_000}):
        sent += 1
        assert sent < 1000
    assert sent >= 1
    ours.close()
    theirs.close()


def test_a_message_that_is_too_large_is_an_error_of_its_sender():
    ours, theirs = channel.pair()
    with pytest.raises(channel.TooLarge, match=r"a message of 7\d{4} bytes; the line carries 65535"):
        ours.send({"sessions": "x" * 70_000})
    assert ours.send({"sessions": "x" * 60_000})
    assert [len(message["sessions"]) for message in theirs.receive()[0]] == [60_000]
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"sessions": "' + b"x" * 300_000 + b'"}', "it is larger than 262144 bytes"),
        (b'{"sessions": ', "it is not JSON: Expecting value"),
        (b"[]", "it is not a JSON object"),
    ],
)
def test_what_cannot_be_read_is_said_and_the_next_message_is_read(data, why):
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)  # the kernel gives less, but enough
    ours = channel.Channel(other)
    one.send(data)
    one.send(b'{"next": 1}')
    (lost, following), gone = ours.receive()
    assert why in lost[channel.LOST]
    assert (following, gone) == ({"next": 1}, False)
    one.close()
    ours.close()


def test_a_message_larger_than_an_earlier_version_read_is_read_whole():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours = channel.Channel(other)
    one.send(b'{"sessions": "' + b"x" * 90_000 + b'"}')
    assert len(ours.receive()[0][0]["sessions"]) == 90_000
    one.close()
    ours.close()
