# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The log never blocks, never tears a line, and counts what it drops."""

from __future__ import annotations

import json
import os
import socket

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder import log as log_module
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.log import MAX_WAITING, Log


def read_all(fd):
    parts = []
    os.set_blocking(fd, False)
    try:
        while part := os.read(fd, 65536):
            parts.append(part)
    except BlockingIOError:
        pass
    return b"".join(parts)


def test_a_line_is_a_json_object_with_time_and_base(tmp_path):
    with open(tmp_path / "log", "wb") as stream:
        log = Log(stream.fileno(), pid=7)
        log.event("connection", client="2001:db8::1", duration=0.5)
        log.flush()
        assert not log.waiting
    record = json.loads((tmp_path / "log").read_text(encoding="utf-8"))
    assert record.pop("time") > 1e9
    assert record == {"event": "connection", "pid": 7, "client": "2001:db8::1", "duration": 0.5}


def test_a_pipe_nobody_reads_does_not_block_and_drops_are_counted():
    read, write = os.pipe()
    log = Log(write)
    sent = 0
    while log.dropped < 10:
        log.event("connection", number=sent, padding="x" * 300)
        log.flush()
        sent += 1
    assert os.get_blocking(write), "the flag of a descriptor others share was changed"
    text = b""
    while log.waiting:
        text += read_all(read)
        log.flush()
    log.event("connection", number=sent)
    log.flush()
    records = [json.loads(line) for line in (text + read_all(read)).decode().splitlines()]
    numbers = [record["number"] for record in records if record["event"] == "connection"]
    assert numbers == [*range(sent - 10), sent]
    assert [record["count"] for record in records if record["event"] == "log lines dropped"] == [10]
    os.close(read)
    log.event("connection", number=0)
    log.flush()  # the reader is gone
    assert not log.waiting
    os.close(write)


def test_what_waits_is_bounded():
    read, write = os.pipe()
    log = Log(write)
    for number in range(MAX_WAITING + 5):
        log.event("connection", number=number)
    assert log.dropped == 5
    os.close(read)
    os.close(write)


def test_writes_to_a_socket_are_whole_lines_of_at_most_pipe_buf():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        log = Log(ours.fileno())
        for number in range(100):
            log.event("connection", number=number)
        log.flush()
        theirs.setblocking(False)
        numbers = []
        while len(numbers) < 100:
            packet = theirs.recv(65536)
            assert len(packet) <= log_module.PIPE_BUF
            assert packet.endswith(b"\n")
            numbers += [json.loads(line)["number"] for line in packet.splitlines()]
        assert numbers == list(range(100))
