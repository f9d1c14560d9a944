# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The log never blocks, never splits a line, and counts what it drops."""

from __future__ import annotations

import json
import os
import re
import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop import log as log_module
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.log import MAX_WAITING, Log, Repeats
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared import line_output


@pytest.fixture
def written(tmp_path):
    """A function that returns the lines which ``work(log)`` writes."""

    def write(work, **settings):
        with open(tmp_path / "log", "wb") as stream:
            log = Log(stream.fileno(), **settings)
            work(log)
            log.flush()
            assert not log.waiting
        return (tmp_path / "log").read_text(encoding="utf-8").splitlines()

    return write


@pytest.fixture
def pipe():
    read, write = os.pipe()
    os.set_blocking(read, False)
    yield read, write
    os.close(write)


def read_all(fd):
    parts = []
    try:
        while part := os.read(fd, 65536):
            parts.append(part)
    except BlockingIOError:
        pass
    return b"".join(parts)


def test_a_line_is_a_json_object_with_time_and_base_fields(written):
    (line,) = written(lambda log: log.event("connection", client="2001:db8::1", duration=0.5), pid=7)
    record = json.loads(line)
    assert record.pop("time") > 1e9
    assert record == {"event": "connection", "level": "info", "pid": 7, "client": "2001:db8::1", "duration": 0.5}


VALUES = ["a b", "100 %s", 'ü"\\', "", None, 0, -1, 0.25, 1e-06, True, "\n"]


@pytest.mark.parametrize("format", ["json", "logfmt"])
def test_kind_writes_the_same_line_as_event(written, format):
    names = [f"field_{number}" for number in range(len(VALUES))]

    def work(log):
        kind = log.kind("connection", names, service="50 %s web", port=None)
        log.event("connection", service="50 %s web", port=None, **dict(zip(names, VALUES)))
        kind(VALUES)
        log.set_level("warning")
        kind(VALUES)

    one, other = written(work, format=format, pid=7, role="100 %")
    time = re.compile(r'(?<=time[":=])[:\d.]+')
    assert time.sub("", one) == time.sub("", other)
    assert len(time.findall(other)) == 1


@pytest.mark.parametrize("writer", [lambda log: log.event, lambda log: lambda name: log.kind(name, ["number"])([1])])
def test_waiting_lines_are_bounded(pipe, writer):
    log = Log(pipe[1])
    for _number in range(MAX_WAITING + 5):
        writer(log)("connection")
    assert log.dropped == 5
    os.close(pipe[0])


def test_a_pipe_that_is_not_read_does_not_block_and_dropped_lines_are_counted(pipe):
    read, write = pipe
    log = Log(write)
    sent = 0
    while log.dropped < 10:
        log.event("connection", number=sent, padding="x" * 300)
        log.flush()
        sent += 1
    assert os.get_blocking(write), "the flag of a descriptors others share was changed"
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
    log.flush()  # no reader is left
    assert not log.waiting


def test_long_lists_and_texts_are_cut(written):
    many = [f"tcp:{number}" for number in range(18_000)]
    (line,) = written(lambda log: log.event("serving", listeners=many, reason="x" * 5000))
    record = json.loads(line)
    assert record["listeners"][-2:] == ["tcp:49", "… and 17950 more"]
    assert record["reason"] == "x" * 2000 + "… (5000 characters)"


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
            assert len(packet) <= line_output.PIPE_BUF
            assert packet.endswith(b"\n")
            numbers += [json.loads(line)["number"] for line in packet.splitlines()]
        assert numbers == list(range(100))


@pytest.mark.parametrize(
    "value", ['é\u2028"\\\n\ud800', None, True, 3, 1.5, float("inf"), [1, {"a": (1, 2)}], {}, {"of": 1}, object]
)
def test_values_are_encoded_as_by_json_dumps(value):
    line, values = log_module.ENCODERS["json"]
    for encode in (line, values[type(value)]):
        assert encode(value) == json.dumps(value, separators=(",", ":"), default=str)


def test_logfmt_quotes_only_where_it_must(written):
    def work(log):
        log.event("backend state", reason='he said "no"', path="/a=b", source=None, ok=True, many=[1, 2], number=0.5)

    (line,) = written(work, format="logfmt", role="checker")
    assert line.startswith('event="backend state" level=info time=')
    fields = 'role=checker reason="he said \\"no\\"" path="/a=b" source= ok=true many="[1,2]" number=0.5'
    assert line.endswith(f" {fields}")


@pytest.mark.parametrize(("level", "lines"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_events_below_the_level_are_not_logged(written, level, lines):
    assert len(written(lambda log: [log.event("x", level=each) for each in log_module.LEVELS], level=level)) == lines


def test_a_storm_of_one_warning_is_bounded_and_counted_and_other_events_are_logged(written, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now[0])

    def work(log):
        for _time in range(500):
            log.event("storm", level="warning")
            log.event("connection")
        log.event("other", level="error")
        now[0] += 1
        log.event("storm", level="warning")

    records = [json.loads(line) for line in written(work)]
    events = [record["event"] for record in records]
    assert events.count("storm") == log_module.MOST_A_SECOND + 1
    assert (events.count("connection"), events.count("other")) == (500, 1)
    (suppressed,) = [record for record in records if record["event"] == "log lines suppressed"]
    assert (suppressed["of"], suppressed["count"]) == ("storm", 500 - log_module.MOST_A_SECOND)


def test_a_repeated_line_is_due_every_ten_seconds_for_each_key():
    repeats = Repeats()
    assert [repeats.due("a", now) for now in (0.0, 9.9, 10.0, 19.9)] == [True, False, True, False]
    assert repeats.due("b", 19.9)
