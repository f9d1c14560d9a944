# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The keeper's loop: what it waits for, what it tells systemd, and its exit status."""

from __future__ import annotations

import io
import json
import logging
import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing import keeper
from ansible_collections.trueip.l4proxy.tests.unit.plugins.module_utils._routing.fakes import RETURN_PATH, FakeHost


@pytest.fixture
def host(tmp_path):
    return FakeHost(tmp_path)


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "routing.d"
    path.mkdir()
    (path / "return_path.json").write_text(json.dumps(RETURN_PATH))
    return path


@pytest.fixture
def systemd(tmp_path):
    """A socket as systemd's: an environment, and what was sent to it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)

        def sent() -> list[str]:
            messages = []
            while True:
                try:
                    messages.append(listener.recv(4096).decode())
                except BlockingIOError:
                    return messages

        yield {"NOTIFY_SOCKET": str(tmp_path / "notify")}, sent


class Clock:
    """In place of sleep: remembers the pauses, and calls what is to happen in the n-th."""

    def __init__(self, **events):
        self.pauses, self.events = [], {int(name[1:]): event for name, event in events.items()}

    def __call__(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.events.get(len(self.pauses), lambda: None)()
        assert len(self.pauses) < 20, "it waits for ever"


def run(host, directory, clock=None, environ=None, **options) -> int:
    return keeper.run(str(directory), host=host.engine, sleep=clock or Clock(), environ=environ or {}, **options)


def test_all_is_applied_at_once(host, directory, systemd):
    environ, sent = systemd
    clock = Clock()
    assert run(host, directory, clock, environ) == 0
    assert clock.pauses == []
    assert sent() == ["STATUS=applied: return_path", "READY=1"]


def test_it_waits_with_a_back_off_and_says_for_what(host, directory, systemd):
    environ, sent = systemd
    near, host.kernel.near = host.kernel.near, {}
    clock = Clock(n8=lambda: setattr(host.kernel, "near", near))
    assert run(host, directory, clock, environ) == 0
    assert clock.pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert sent() == [
        "STATUS=return_path: waiting for 198.18.0.11 to be on-link",
        "STATUS=applied: return_path",
        "READY=1",
    ]


def test_it_is_ready_without_the_mac_of_a_silent_proxy_and_follows_it(host, directory, systemd):
    environ, sent = systemd
    data = {**RETURN_PATH, "marks": [{**RETURN_PATH["marks"][0], "mac": None}]}
    (directory / "return_path.json").write_text(json.dumps(data))
    clock = Clock(n2=lambda: host.kernel.neighbours.update({"198.18.0.11": "02:00:00:00:00:11"}))
    assert run(host, directory, clock, environ) == 0
    assert len(clock.pauses) == 2
    waiting = "return_path: waiting for 198.18.0.11 to answer: the MAC of proxy a is not known yet"
    assert sent() == [f"STATUS={waiting}", "READY=1", "STATUS=applied: return_path"]


def test_a_step_that_fails_is_tried_again(host, directory):
    host.kernel.fail = "set ip route"
    clock = Clock(n1=lambda: setattr(host.kernel, "fail", ""))
    assert run(host, directory, clock) == 0
    assert len(host.kernel.held_rules) == 2


def test_once_makes_one_pass(host, directory):
    host.kernel.near = {}
    clock = Clock()
    assert run(host, directory, clock, once=True) == 1
    assert clock.pauses == []


def test_a_bad_document_is_named_and_the_others_are_applied(host, directory, caplog):
    bad = {"schema": 1, "owner": "local_delivery", "protocol": 201, "rules": [{}], "x": 1}
    (directory / "local_delivery.json").write_text(json.dumps(bad))
    with caplog.at_level(logging.INFO):
        assert run(host, directory) == 1
    assert len(host.kernel.held_rules) == 2
    path = directory / "local_delivery.json"
    for error in ("x: unknown key", "rules[0].family: required", "rules[0].action: required"):
        assert f"{path}: {error}" in caplog.text


def test_a_missing_package_is_not_waited_for(host, directory, caplog):
    host.nft.missing = True
    with caplog.at_level(logging.INFO):
        assert run(host, directory) == 1
    assert "return_path: marks need the command nft: install the package nftables" in caplog.text


def test_no_documents_is_nothing_to_do(host, tmp_path):
    assert run(host, tmp_path / "none") == 0


def test_an_empty_document_is_applied(host, directory):
    run(host, directory)
    empty = {key: RETURN_PATH[key] for key in ("schema", "owner", "protocol")}
    (directory / "return_path.json").write_text(json.dumps(empty))
    assert run(host, directory) == 0
    assert host.kernel.held_rules == []


def test_a_dry_run_shows_the_difference(host, directory):
    out = io.StringIO()
    assert run(host, directory, dry_run=True, out=out) == 2
    assert "return_path: add ip rule 1101: from all fwmark 0xb/0xff unreachable\n" in out.getvalue()
    assert host.kernel.calls == []
    run(host, directory)
    assert run(host, directory, dry_run=True, out=io.StringIO()) == 0


def test_a_dry_run_tells_what_is_wrong(host, directory):
    (directory / "x.json").write_text("{")
    out = io.StringIO()
    assert run(host, directory, dry_run=True, out=out) == 1
    assert f"{directory}/x.json: is not JSON" in out.getvalue()


def test_nobody_listens_to_the_notification(host, directory, tmp_path):
    assert run(host, directory, environ={"NOTIFY_SOCKET": str(tmp_path / "gone")}) == 0
