# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The log never blocks, never tears a line, and counts what it drops."""

from __future__ import annotations

import json
import os
import re
import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop import log as log_module
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.log import MAX_WAITING, Log


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
    assert record.pop("level") == "info"
    assert record == {"event": "connection", "pid": 7, "client": "2001:db8::1", "duration": 0.5}


VALUES = ["a b", "100 %s", 'ü"\\', "", None, 0, -1, 0.25, 1e-06, True, "\n"]


@pytest.mark.parametrize("format", ["json", "logfmt"])
def test_a_kind_of_line_is_the_line_that_event_writes(tmp_path, format):
    with open(tmp_path / "log", "wb") as stream:
        log = Log(stream.fileno(), format=format, pid=7, role="100 %")
        names = [f"field_{number}" for number in range(len(VALUES))]
        kind = log.kind("connection", names, service="50 %s web", port=None)
        log.event("connection", service="50 %s web", port=None, **dict(zip(names, VALUES)))
        kind(VALUES)
        log.set_level("warning")
        kind(VALUES)
        log.flush()
    one, other = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    time = re.compile(r'(?<=time[":=])[:\d.]+')
    assert time.sub("", one) == time.sub("", other)
    assert len(time.findall(other)) == 1


def test_a_kind_of_line_waits_and_is_dropped_like_any_other():
    read, write = os.pipe()
    log = Log(write)
    kind = log.kind("connection", ["number"])
    for number in range(MAX_WAITING + 5):
        kind([number])
    assert log.dropped == 5
    os.close(read)
    os.close(write)


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


def test_what_grows_with_the_config_is_cut(tmp_path):
    with open(tmp_path / "log", "w+b") as stream:
        log = Log(stream.fileno())
        log.event("serving", listeners=[f"tcp:{number}" for number in range(18_000)], reason="x" * 5000)
        log.flush()
        stream.seek(0)
        line = json.loads(stream.read())
    assert line["listeners"][-2:] == ["tcp:49", "… and 17950 more"]
    assert line["reason"] == "x" * 2000 + "… (5000 characters)"


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


@pytest.mark.parametrize(
    "value", ['é\u2028"\\\n\ud800', None, True, 3, 1.5, float("inf"), [1, {"a": (1, 2)}], {}, {"of": 1}, object]
)
def test_values_are_spelled_as_json_does(value):
    line, values = log_module.ENCODERS["json"]
    for spell in (line, values[type(value)]):
        assert spell(value) == json.dumps(value, separators=(",", ":"), default=str)


def written(directory, work, **settings):
    """Return the lines ``work(log)`` leads to."""
    with open(directory / "log", "wb") as stream:
        log = Log(stream.fileno(), **settings)
        work(log)
        log.flush()
    return (directory / "log").read_text(encoding="utf-8").splitlines()


def test_logfmt_quotes_what_has_to_be(tmp_path):
    def work(log):
        log.event("backend state", reason='he said "no"', path="/a=b", source=None, ok=True, many=[1, 2], number=0.5)

    (line,) = written(tmp_path, work, format="logfmt", role="checker")
    assert line.startswith('event="backend state" level=info time=')
    assert line.endswith(
        ' role=checker reason="he said \\"no\\"" path="/a=b" source= ok=true many="[1,2]" number=0.5'
    ), line


@pytest.mark.parametrize(("level", "seen"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_events_below_the_level_are_not_written(tmp_path, level, seen):
    def work(log):
        for each in log_module.LEVELS:
            log.event("x", level=each)

    assert len(written(tmp_path, work, level=level)) == seen


def test_a_storm_of_one_warning_is_bounded_and_counted_and_others_pass(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now[0])

    def work(log):
        for _time in range(500):
            log.event("storm", level="warning")
            log.event("connection")
        log.event("other", level="error")
        now[0] += 1
        log.event("storm", level="warning")

    records = [json.loads(line) for line in written(tmp_path, work)]
    assert sum(record["event"] == "storm" for record in records) == log_module.MOST_A_SECOND + 1
    assert sum(record["event"] == "connection" for record in records) == 500
    assert sum(record["event"] == "other" for record in records) == 1
    (suppressed,) = [record for record in records if record["event"] == "log lines suppressed"]
    assert (suppressed["of"], suppressed["count"]) == ("storm", 500 - log_module.MOST_A_SECOND)
