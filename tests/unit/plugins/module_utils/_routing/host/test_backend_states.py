# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The file in which an unprivileged process says which backends serve: valid, broken and hostile ones."""

from __future__ import annotations

import json
import os
import time

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.kernel_service import (
    KernelService,
    Server,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host import backend_states
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.backend_states import States

VALID = {"schema": 1, "services": {"web": {"b": "up", "c": "down", "d": "out"}}}


def servers(**details) -> tuple[Server, ...]:
    return tuple(
        Server(name, f"198.18.0.{number}", 80, **details.get(name, {})) for number, name in enumerate("bcd", 21)
    )


def web(on_all_down="refuse", **details) -> KernelService:
    return KernelService("web", "ipv4", "tcp", "198.18.0.11", 80, servers(**details), on_all_down=on_all_down)


def text(services) -> str:
    return json.dumps({"schema": 1, "services": services})


READABLE = [
    (json.dumps(VALID), VALID["services"]),
    (text({"web": {"b": "asleep", "c": 1, "d": "down"}, "dns": []}), {"web": {"d": "down"}}),
    (text({"web": {"b": {"ipv4": "up", "ipv6": "asleep"}}}), {"web": {"b": {"ipv4": "up"}}}),
    (text({}), {}),
]


@pytest.mark.parametrize(("content", "services"), READABLE)
def test_valid_files_are_read_and_states_of_later_versions_left_out(tmp_path, content, services):
    path = tmp_path / "backends.json"
    path.write_text(content)
    assert backend_states.read(str(path)) == States(services)


def test_what_is_not_mentioned_stays_as_it_was_said_last():
    before = States({"web": {"b": "down", "c": {"ipv4": "out", "ipv6": "down"}}})
    assert States({"web": {}}).after(before).of_service(web()) == {"b": "down", "c": "out", "d": "up"}
    assert States().after(before) == States(), "the forwarder has the service again"
    assert States({"web": {"b": "up", "d": "out"}}).after(before).of_service(web()) == {
        "b": "up",
        "c": "out",
        "d": "out",
    }


def test_the_last_states_outlive_the_file_but_not_in_any_number(tmp_path, monkeypatch):
    path = tmp_path / "backends.json"
    read = backend_states.Reader(str(path))
    assert read() == States()
    path.write_text(json.dumps(VALID))
    assert read() == States(VALID["services"])
    path.unlink()
    assert read() == States(VALID["services"])
    path.write_text("broken")
    assert (read().services, bool(read().fault)) == (VALID["services"], True)
    path.write_text(text({"web": {"c": "up"}}))
    assert read() == States({"web": {"b": "up", "c": "up", "d": "out"}})
    monkeypatch.setattr(backend_states, "MOST_REMEMBERED", 3)
    path.write_text(text({"mail": {"b": "down"}}))
    assert read() == States({"mail": {"b": "down"}})


def test_without_a_file_nothing_is_known(tmp_path):
    assert backend_states.read(str(tmp_path / "none" / "backends.json")) == States()


BROKEN = [
    (b"", "is not valid JSON"),
    (json.dumps(VALID).encode()[:-9], "is not valid JSON"),
    (b"\xff\xfe\xff", "is not valid JSON"),
    (b"[" * 500_000, "is not valid JSON"),
    (b'{"schema": ' + b"1" * 900_000 + b"}", "does not have schema 1"),
    (b"[]", "does not have schema 1"),
    (b'{"schema": 2, "services": {}}', "does not have schema 1"),
    (b'{"schema": 1, "services": []}', "services is not an object"),
    (b" " * (backend_states.MOST_BYTES + 1), "is longer than 1048576 bytes"),
]


@pytest.mark.parametrize(("content", "fault"), BROKEN, ids=range(len(BROKEN)))
def test_broken_files_are_ignored_at_once_and_the_reason_is_given(tmp_path, content, fault):
    path, began = tmp_path / "backends.json", time.process_time()
    path.write_bytes(content)
    states = backend_states.read(str(path))
    assert states.services == {}
    assert fault in states.fault
    assert time.process_time() - began < 0.5


def link(path):
    (path.parent / "secret").write_text(json.dumps(VALID))
    path.symlink_to(path.parent / "secret")


@pytest.mark.parametrize("make", [link, os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_neither_followed_nor_waited_for(tmp_path, make):
    path = tmp_path / "backends.json"
    make(path)
    states = backend_states.read(str(path))
    assert states.services == {}
    assert states.fault


# (details of backends, on_all_down, states, who serves)
SERVING = [
    ({}, "refuse", {}, "bcd"),
    ({}, "refuse", {"b": "down", "c": "out"}, "d"),
    ({}, "refuse", {"b": "down", "c": "down", "d": "out"}, ""),
    ({}, "try_all", {"b": "down", "c": "down", "d": "out"}, "bc"),
    ({"b": {"enabled": False}}, "try_all", {"c": "down", "d": "down"}, "cd"),
    ({"d": {"tier": 1}}, "refuse", {}, "bc"),
    ({"d": {"tier": 1}}, "refuse", {"b": "down", "c": "out"}, "d"),
    ({"d": {"tier": 1}}, "try_all", {"b": "down", "c": "down", "d": "down"}, "bc"),
]


@pytest.mark.parametrize(("details", "on_all_down", "said", "names"), SERVING)
def test_backends_that_are_up_serve_and_a_later_tier_only_without_an_earlier_one(details, on_all_down, said, names):
    assert States({"web": said}).serving(web(on_all_down, **details)) == frozenset(names)


def test_what_no_document_declares_is_named_without_control_characters():
    states = States({"web": {"b": "up", "x": "up"}, "a\nb\udc80": {}, **{f"z{number}": {} for number in range(20)}})
    unknown = states.unknown([web()])
    assert unknown[:3] == ["a\\nb\\udc80", "web/x", "z0"]
    assert len(unknown) == 10
    assert states.of_service(web()) == {"b": "up", "c": "up", "d": "up"}
