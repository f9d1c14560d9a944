# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The channel between the supervisor and a child: whole messages, bounded, and the end of the other process."""

from __future__ import annotations

import os
import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import channel


@pytest.fixture
def ends():
    ends = channel.pair()
    yield ends
    for end in ends:
        end.close()


@pytest.fixture
def raw():
    """A socket, and the channel that is its peer."""
    sock, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)  # the kernel gives less, but enough
    receiver = channel.Channel(peer)
    yield sock, receiver
    sock.close()
    receiver.close()


def test_messages_arrive_in_order_and_then_the_end_of_the_other_process(ends):
    ours, theirs = ends
    assert theirs.receive() == ([], False)
    for number in range(3):
        assert ours.send({"cover": [number]})
    assert theirs.receive() == ([{"cover": [number]} for number in range(3)], False)
    ours.send({"last": 1})
    ours.close()
    assert theirs.receive() == ([{"last": 1}], True)
    assert theirs.send({"too": "late"}) is False


def test_sending_a_message_that_is_too_large_raises_an_error_and_a_full_queue_does_not_block(ends):
    ours, theirs = ends
    with pytest.raises(channel.TooLarge, match=r"a message of 7\d{4} bytes exceeds the limit of 65535"):
        ours.send({"sessions": "x" * 70_000})
    assert ours.send({"sessions": "x" * 60_000})
    assert [len(message["sessions"]) for message in theirs.receive()[0]] == [60_000]
    sent = 0
    while ours.send({"padding": "x" * 60_000}):  # the other process does not read
        sent += 1
        assert sent < 1000
    assert sent >= 1


@pytest.mark.parametrize(("data", "reason"), [
    (b'{"sessions": "' + b"x" * 300_000 + b'"}', "it is larger than 262144 bytes"),
    (b'{"sessions": ', "it is not JSON: Expecting value"),
    (b"[]", "it is not a JSON object"),
])  # fmt: skip
def test_an_unreadable_message_is_reported_and_the_next_one_is_read(raw, data, reason):
    sock, receiver = raw
    sock.send(data)
    sock.send(b'{"next": "' + b"x" * 90_000 + b'"}')  # above the limit for sending: of an earlier version
    (lost, following), closed = receiver.receive()
    assert reason in lost[channel.LOST]
    assert (following, closed) == ({"next": "x" * 90_000}, False)


def test_a_message_carries_copies_of_descriptors(ends):
    ours, theirs = ends
    pipes = [os.pipe() for _pipe in range(channel.MAX_DESCRIPTORS // 2)]
    numbers = [number for pipe in pipes for number in pipe]
    assert ours.send({"prepare": 1}, numbers)
    for number in numbers:
        os.close(number)
    assert ours.send({"prepare": 2, channel.DESCRIPTORS: [0, 1, 2]})
    (message, forged), _closed = theirs.receive()
    received = list(message[channel.DESCRIPTORS])
    assert (len(received), any(map(os.get_inheritable, received))) == (len(numbers), False)
    os.write(received[1], b"!")
    assert os.read(received[0], 2) == b"!"
    channel.close_descriptors(message)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(received[0])
    assert (message, forged) == ({"prepare": 1}, {"prepare": 2}), "only the kernel says which descriptors came along"
