# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisor's line to a child: messages stay apart, a full or closed line blocks nobody."""

from __future__ import annotations

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder import channel


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
