# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests to the admin socket: what is said of backends, what is asked of the workers, and refusals."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import commands
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.overrides import Overrides
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.timers import Timers


def backends(*names):
    return tuple(Backend(name=name, ipv4=f"198.18.0.{ord(name)}", port=80) for name in names)


CONFIG = Config(proxy_id=1, services=(Service("web", (), backends("b", "c")), Service("mail", (), backends("b"))))


class Client:
    """Takes what is written to it."""

    def __init__(self):
        self.replies = []

    def write(self, data):
        assert data.endswith(b"\n")
        self.replies.append(json.loads(data))


class Host:
    """An Admin, and what it needs of a supervisor that has two workers and a checker."""

    def __init__(self):
        self.region = shared_memory.Region(shared_memory.describe(CONFIG, 2))
        self.children = [SimpleNamespace(pid=number, role="worker") for number in (1, 2)]
        self.children.append(SimpleNamespace(pid=3, role="checker"))
        self.told, self.logged, self.time = [], [], 100.0
        self.supervisor = SimpleNamespace(
            serving=SimpleNamespace(config=CONFIG, region=self.region),
            candidate=None,
            overrides=Overrides(),
            pool=SimpleNamespace(tell=self.tell),
            log=SimpleNamespace(level="info", event=lambda name, **fields: self.logged.append(name)),
            set_log_level=self.set_log_level,
            timers=Timers(),
            now=lambda: self.time,
        )
        self.admin = commands.Admin(self.supervisor)

    def tell(self, message):
        self.told.append(message)
        return self.children

    def set_log_level(self, level):
        self.supervisor.log.level = level or "info"

    def ask(self, line, **request):
        """Return the replies to one request so far."""
        client = Client()
        self.admin.answer(client, line or json.dumps(request).encode())
        return client.replies

    def answered(self, pid, count, *durations):
        """A worker answers the latest question."""
        sessions = [{"duration": duration} for duration in durations]
        message = {"answer": self.told[-1]["sessions"], "count": count, "sessions": sessions}
        self.admin.answered(self.children[pid - 1], message)


@pytest.fixture
def host():
    host = Host()
    yield host
    host.region.close()


TEST_REFUSALS = [
    (b"", "one JSON object on one line"),
    (b"null", "a request is a JSON object"),
    (b'{"op": 1}', "op is one of drain, log_level, maintenance, ready, sessions, status, weight"),
    (b'{"op": "drain"}', "there is no backend None (there are b, c)"),
    (b'{"op": "drain", "backend": "c", "service": "mail"}', "there is no backend 'c' (there are b)"),
    (b'{"op": "drain", "backend": "b", "service": ["web"]}', "there is no service ['web'] (there are web, mail)"),
    (b'{"op": "weight", "backend": "b", "weight": 1e400}', "weight is a whole number from 1 to 65535"),
    (b'{"op": "weight", "backend": "b", "weight": 65536}', "weight is a whole number from 1 to 65535"),
    (b'{"op": "sessions", "limit": true}', "limit is a whole number from 1 to 100"),
    (b'{"op": "sessions", "backend": "' + b"b" * 81 + b'"}', "backend is the name of a backend, or null for all"),
    (b'{"op": "sessions", "service": ["web"]}', "service is the name of a service, or null for all"),
    (b'{"op": "log_level", "level": ["info"]}', "level is one of"),
]


@pytest.mark.parametrize(("line", "sentence"), TEST_REFUSALS)
def test_refusals(host, line, sentence):
    (reply,) = host.ask(line or b" ")
    assert reply["ok"] is False
    assert sentence in reply["error"]
    assert (host.supervisor.overrides.records(), host.told, host.logged) == ([], [], [])


def test_a_sentence_names_no_more_than_can_be_read(host):
    many = tuple(Backend(f"b{number:04}", 80, ipv4=f"198.18.9.{number}") for number in range(200))
    host.supervisor.serving.config = Config(proxy_id=1, services=(Service("web", (), many),))
    (reply,) = host.ask(None, op="drain", backend="x")
    assert reply["error"].endswith("b0048, b0049, and 150 more)")


def test_before_a_config_is_served(host):
    host.supervisor.serving = None
    assert host.ask(None, op="status") == [{"ok": False, "error": "no config is served yet"}]


TEST_ORDERS = [
    ({"op": "drain", "backend": "b"}, ["web", "mail"], {"state": "draining"}),
    ({"op": "maintenance", "backend": "b", "service": "mail"}, ["mail"], {"state": "maintenance"}),
    ({"op": "weight", "backend": "c", "weight": 7}, ["web"], {"weight": 7}),
]


@pytest.mark.parametrize(("request_", "services", "order"), TEST_ORDERS)
def test_an_order_is_new_once_and_can_be_taken_back(host, request_, services, order):
    epoch = host.region.cells[shared_memory.EPOCH_ADMIN]
    assert host.ask(None, **request_) == [{"ok": True, "changed": True, "services": services}]
    assert [host.supervisor.overrides.of(name, request_["backend"]) for name in services] == [order] * len(services)
    assert host.region.cells[shared_memory.EPOCH_ADMIN] == epoch + 1, "the workers look"
    assert host.ask(None, **request_) == [{"ok": True, "changed": False, "services": services}]
    assert host.logged == ["backend order"]
    back = {"op": "weight", "weight": None} if "weight" in request_ else {"op": "ready"}
    assert host.ask(None, **{**request_, **back})[0]["changed"] is True
    assert host.supervisor.overrides.records() == []


def test_the_sessions_of_all_workers_are_one_answer(host):
    replies = host.ask(None, op="sessions", service="web", limit=3)
    assert host.told == [{"sessions": 1, "limit": 3, "service": "web", "backend": None}]
    host.answered(1, 10, 5.0, 1.0)
    host.answered(1, 10, 9.0)  # once is enough
    assert replies == []
    host.answered(2, 2, 4.0, 3.0)
    (reply,) = replies
    assert (reply["count"], reply["silent_workers"]) == (12, 0)
    assert [one["duration"] for one in reply["sessions"]] == [5.0, 4.0, 3.0]
    host.answered(2, 2, 4.0)
    assert len(replies) == 1


def test_a_worker_that_is_silent_or_gone_is_not_waited_for(host):
    silent = host.ask(None, op="sessions")
    host.answered(1, 1, 5.0)
    for item in host.supervisor.timers.due(host.time + 2 * commands.SESSIONS_TIMEOUT):
        item()
    assert [(reply["count"], reply["silent_workers"]) for reply in silent] == [(1, 1)]
    gone = host.ask(None, op="sessions")
    host.answered(2, 1, 5.0)
    host.admin.gone(host.children[0])
    assert [(reply["count"], reply["silent_workers"]) for reply in gone] == [(1, 0)]


def test_the_log_level(host):
    assert host.ask(None, op="log_level", level="error") == [{"ok": True, "changed": True, "level": "error"}]
    assert host.ask(None, op="log_level", level="error") == [{"ok": True, "changed": False, "level": "error"}]
    assert host.ask(None, op="log_level") == [{"ok": True, "changed": True, "level": "info"}]
