# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of the admin socket: overrides, sessions, log level, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import cli_views, commands
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_agent import HealthAgent
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_check import HealthCheck
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Listener, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import agent_state, shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.agent_state import AgentWord
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.overrides import Overrides


def backends(*names):
    return tuple(Backend(name=name, ipv4=f"198.18.0.{ord(name)}", port=80) for name in names)


CONFIG = Config(proxy_id=1, services=(Service("web", (), backends("b", "c")), Service("mail", (), backends("b"))))


class Client:
    """Collects the replies."""

    def __init__(self):
        self.replies = []

    def write(self, data):
        assert data.endswith(b"\n")
        self.replies.append(json.loads(data))


class Forwarder:
    """What an Admin uses of a forwarder with two workers, of pids 1 and 2."""

    def __init__(self):
        self.config, self.overrides = CONFIG, Overrides()
        self.region = shared_memory.Region(shared_memory.describe(CONFIG, 2))
        self.questions, self.logged, self.timers = [], [], []
        self.log = SimpleNamespace(level="info", event=lambda name, **fields: self.logged.append(name))
        self.not_saved = None  # why the disk refuses what is saved
        self.admin = commands.Admin(self)

    def publish_overrides(self):
        self.overrides.publish(self.region)

    def save(self, then):
        then(self.not_saved)

    def set_log_level(self, level):
        self.log.level = level or "info"

    def ask_workers(self, question, generation=None):
        self.questions.append(question)
        return {1, 2} if generation in (None, 5) else {3}

    def generations(self):
        return [4, 5]

    def end_generation(self, number):
        return 7 if number == 4 else None

    def call_later(self, seconds, callback):
        self.timers.append(callback)

    def ask(self, line=None, **request):
        """Return the list that gets the replies to one request."""
        client = Client()
        self.admin.answer(client, line or json.dumps(request).encode())
        return client.replies

    def worker_answers(self, pid, count, *durations):
        """Let a worker answer the latest question."""
        sessions = [{"duration": duration} for duration in durations]
        question = self.questions[-1]
        number = question["kill"]["number"] if "kill" in question else question["sessions"]
        message = {"answer": number, "count": count, "sessions": sessions}
        self.admin.worker_answered(pid, message)


@pytest.fixture
def forwarder():
    forwarder = Forwarder()
    yield forwarder
    forwarder.region.close()


TEST_REFUSALS = [
    (b"", "a request must be one JSON object on one line"),
    (b"null", "a request must be a JSON object"),
    (
        b'{"op": 1}',
        "op must be one of allow, clients, denied, deny, drain, healthy, kill, log_level, maintenance, ready, rejoin, ",
    ),
    (b'{"op": "drain"}', "there is no backend None (there are b, c)"),
    (b'{"op": "drain", "backend": "c", "service": "mail"}', "there is no backend 'c' (there are b)"),
    (b'{"op": "drain", "backend": "b", "service": ["web"]}', "there is no service ['web'] (there are web, mail)"),
    (b'{"op": "weight", "backend": "b", "weight": 1e400}', "weight must be a whole number from 1 to 65535"),
    (b'{"op": "weight", "backend": "b", "weight": 65536}', "weight must be a whole number from 1 to 65535"),
    (b'{"op": "sessions", "limit": true}', "limit must be a whole number from 1 to 100"),
    (b'{"op": "sessions", "backend": "' + b"b" * 81 + b'"}', "backend must be the name of a backend"),
    (b'{"op": "sessions", "service": ["web"]}', "service must be the name of a service"),
    (b'{"op": "clients", "by": ["bytes"]}', "by must be one of sessions, bytes"),
    (b'{"op": "sessions", "client": "x"}', "client must be an address or a network: 'x' does not"),
    (b'{"op": "log_level", "level": ["info"]}', "level must be one of"),
]


@pytest.mark.parametrize(("line", "sentence"), TEST_REFUSALS)
def test_a_wrong_request_is_refused_and_changes_nothing(forwarder, line, sentence):
    (reply,) = forwarder.ask(line or b" ")
    assert reply["ok"] is False
    assert sentence in reply["error"]
    assert (forwarder.overrides.records(), forwarder.questions, forwarder.logged) == ([], [], [])


def test_a_refusal_lists_only_the_first_names_and_without_a_config_every_request_is_refused(forwarder):
    many = tuple(Backend(f"b{number:04}", 80, ipv4=f"198.18.9.{number}") for number in range(200))
    forwarder.config = Config(proxy_id=1, services=(Service("web", (), many),))
    assert forwarder.ask(op="drain", backend="x")[0]["error"].endswith("b0048, b0049, and 150 more)")
    forwarder.config = None
    assert forwarder.ask(op="status") == [{"ok": False, "error": "no config is served yet"}]


@pytest.mark.parametrize(("request_", "services", "override"), [
    ({"op": "drain", "backend": "b"}, ["web", "mail"], {"state": "draining"}),
    ({"op": "maintenance", "backend": "b", "service": "mail"}, ["mail"], {"state": "maintenance"}),
    ({"op": "weight", "backend": "c", "weight": 7}, ["web"], {"weight": 7}),
])  # fmt: skip
def test_an_override_changes_once_and_can_be_removed(forwarder, request_, services, override):
    epoch = forwarder.region.cells[shared_memory.EPOCH_ADMIN]
    assert forwarder.ask(**request_) == [{"ok": True, "changed": True, "services": services}]
    assert [forwarder.overrides.of(name, request_["backend"]) for name in services] == [override] * len(services)
    assert forwarder.region.cells[shared_memory.EPOCH_ADMIN] == epoch + 1, "the workers read them"
    assert forwarder.ask(**request_) == [{"ok": True, "changed": False, "services": services}]
    assert forwarder.logged == ["backend override"]
    back = {"op": "weight", "weight": None} if "weight" in request_ else {"op": "ready"}
    assert forwarder.ask(**{**request_, **back})[0]["changed"] is True
    assert forwarder.overrides.records() == []
    forwarder.not_saved = "state.json: No space left on device"
    (reply,) = forwarder.ask(**request_)
    assert (reply["ok"], reply["changed"], reply["not_saved"]) == (True, True, forwarder.not_saved), "it has effect"


def test_a_backend_that_the_config_disables_cannot_be_made_ready(forwarder):
    web, mail = CONFIG.services
    off = replace(web, backends=tuple(replace(one, enabled=False) for one in web.backends))
    forwarder.config = replace(CONFIG, services=(off, mail))
    forwarder.ask(op="drain", backend="b")
    answer = {"ok": True, "changed": True, "services": ["mail"], "disabled": ["web"]}
    assert forwarder.ask(op="ready", backend="b") == [answer]
    assert forwarder.overrides.records() == [], "what the operator has said is removed all the same"
    (reply,) = forwarder.ask(op="ready", backend="b", service="web")
    assert (reply["ok"], reply["reason"]) == (False, "disabled")
    assert reply["error"].startswith("backend b is disabled in web: l4proxy_services has enabled: false for it;")


def test_ready_names_the_services_in_which_an_agent_still_keeps_the_backend_out(forwarder, monkeypatch, capsys):
    web, mail = CONFIG.services
    forwarder.config = replace(CONFIG, services=(replace(web, health=HealthCheck(agent=HealthAgent(9707))), mail))
    forwarder.region = shared_memory.Region(shared_memory.describe(forwarder.config, 2))
    forwarder.snapshot = lambda: SimpleNamespace(region=forwarder.region, overrides=forwarder.overrides)
    assert "agent" not in forwarder.ask(op="ready", backend="b")[0]
    agent_state.write(forwarder.region, forwarder.region.targets.index(("web", "b", "ipv4")), AgentWord("", "drain"))
    assert "agent" not in forwarder.ask(op="drain", backend="b")[0]
    (answer,) = forwarder.ask(op="ready", backend="b")
    assert (answer["agent"], answer["services"]) == (["web"], ["web", "mail"])
    monkeypatch.setattr(cli_views.client, "ask", lambda path, op, **options: answer)
    assert cli_views.set_backend_state("", "ready", "b", None) == 0
    assert capsys.readouterr().out.endswith("its agent still keeps it out in web; `l4proxy status` shows why\n")


def test_the_sessions_of_all_workers_are_in_one_answer(forwarder):
    replies = forwarder.ask(op="sessions", service="web", limit=3)
    assert forwarder.questions == [{"sessions": 1, "number": 1, "limit": 3, "service": "web"}]
    forwarder.worker_answers(1, 10, 5.0, 1.0)
    forwarder.worker_answers(1, 10, 9.0)  # only the first answer counts
    assert replies == []
    forwarder.worker_answers(2, 2, 4.0, 3.0)
    (reply,) = replies
    assert (reply["count"], reply["silent_workers"]) == (12, 0)
    assert [one["duration"] for one in reply["sessions"]] == [5.0, 4.0, 3.0]
    forwarder.worker_answers(2, 2, 4.0)
    assert len(replies) == 1


def test_workers_of_version_0_1_0_which_cannot_select_clients_are_not_asked_for_sessions_of_some(forwarder):
    forwarder.ask(op="sessions", client="198.18.0.0/24", generation=5)
    assert forwarder.questions == [{"oldest": {"number": 1, "limit": 100, "client": "198.18.0.0/24"}}]


@pytest.mark.parametrize(("by", "order"), [("sessions", ["x", "z"]), ("bytes", ["z", "x"])])
def test_the_clients_of_all_workers_are_added_up(forwarder, by, order):
    replies = forwarder.ask(op="clients", by=by, limit=2, service="web")
    (question,) = forwarder.questions
    assert question == {"clients": {"number": 1, "by": by, "service": "web"}}
    names = ("client", "sessions", "bytes_to_backend", "bytes_to_client", "duration")
    workers = [[("x", 3, 1, 1, 9.0), ("y", 1, 1, 0, 1.0)], [("z", 4, 9, 9, 2.0), ("x", 2, 1, 1, 3.0)]]
    for pid, rows in enumerate(workers, 1):
        sessions = [{"service": "web", **dict(zip(names, row))} for row in rows]
        forwarder.admin.worker_answered(pid, {"answer": 1, "count": 5, "sessions": sessions})
    (reply,) = replies
    assert (reply["count"], [one["client"] for one in reply["clients"]]) == (10, order)
    x = next(one for one in reply["clients"] if one["client"] == "x")
    assert tuple(x[name] for name in names) == ("x", 5, 2, 2, 9.0)


def test_connections_of_the_kernel_are_pointed_to_and_their_weights_are_fixed(forwarder, capsys):
    listen = (Listener("198.18.0.11", 80),)
    kernel = Service("dns", listen, backends("b"), protocol="udp", datapath="kernel")
    forwarder.config = replace(CONFIG, services=(*CONFIG.services, kernel))
    for service, names in ((None, {"dns"}), ("dns", {"dns"}), ("web", set())):
        replies = forwarder.ask(op="sessions", service=service)
        forwarder.worker_answers(1, 1)
        forwarder.worker_answers(2, 0)
        assert set(replies[0].get("in_kernel", {})) == names
    (reply,) = forwarder.ask(op="weight", backend="b", weight=3)
    assert reply["error"].startswith(
        "the kernel forwards dns, so all proxies must have the same weights: change weight"
    )
    assert forwarder.overrides.records() == []
    assert forwarder.ask(op="weight", backend="b", service="web", weight=3)[0]["ok"]
    forwarder.overrides.set("dns", "b", "weight", 3)
    forwarder.overrides.set("dns", "b", "state", "draining")
    forwarder.overrides.settle(forwarder.config)
    assert forwarder.overrides.of("dns", "b") == {"state": "draining"}
    cli_views._point_to_kernel({"in_kernel": {"dns": ["OPTIONS"]}}, "-D")
    sentence = "the kernel has the connections of service dns; end them with: conntrack -D OPTIONS\n"
    assert capsys.readouterr().err == sentence


def test_sessions_are_answered_without_workers_that_are_silent_or_have_ended(forwarder):
    silent = forwarder.ask(op="sessions")
    forwarder.worker_answers(1, 1, 5.0)
    forwarder.timers.pop()()
    assert [(reply["count"], reply["silent_workers"]) for reply in silent] == [(1, 1)]
    ended = forwarder.ask(op="sessions")
    forwarder.worker_answers(2, 1, 5.0)
    forwarder.admin.worker_ended(1)
    assert [(reply["count"], reply["silent_workers"]) for reply in ended] == [(1, 0)]


def test_the_log_level_is_set_and_reset(forwarder):
    assert forwarder.ask(op="log_level", level="error") == [{"ok": True, "changed": True, "level": "error"}]
    assert forwarder.ask(op="log_level", level="error") == [{"ok": True, "changed": False, "level": "error"}]
    assert forwarder.ask(op="log_level") == [{"ok": True, "changed": True, "level": "info"}]


@pytest.mark.parametrize(("request_", "sentence"), [
    ({}, "select the sessions to end by at least one of generation, service, backend, client"),
    ({"generation": 3}, "there is no generation 3 with workers (there are 4, 5)"),
    ({"generation": "4"}, "there is no generation '4' with workers (there are 4, 5)"),
    ({"service": 1}, "service must be the name of a service"),
    ({"backend": "x" * 100}, "backend must be the name of a backend"),
    ({"client": "198.18.0.1/8"}, "client must be an address or a network: 198.18.0.1/8 has host bits set"),
    ({"client": 7}, "client must be an address or a network: "),
])  # fmt: skip
def test_sessions_to_end_are_selected_by_what_there_is(forwarder, request_, sentence):
    (reply,) = forwarder.ask(op="kill", **request_)
    assert not reply["ok"]
    assert reply["error"].startswith(sentence)
    assert not forwarder.questions


def test_an_old_generation_is_ended_as_a_whole_and_other_sessions_by_their_workers(forwarder):
    assert forwarder.ask(op="kill", generation=4) == [{"ok": True, "ended": 7, "silent_workers": 0}]
    assert not forwarder.questions
    replies = forwarder.ask(op="kill", generation=5)
    assert forwarder.questions == [{"kill": {"number": 1}}]
    forwarder.worker_answers(1, 2)
    assert not replies
    forwarder.worker_answers(2, 3)
    assert replies == [{"ok": True, "ended": 5, "silent_workers": 0}]
    replies = forwarder.ask(op="kill", generation=4, client="198.18.0.0/24")
    assert forwarder.questions[1:] == [{"kill": {"number": 2, "client": "198.18.0.0/24"}}]
    forwarder.timers[-1]()
    assert replies == [{"ok": True, "ended": 0, "silent_workers": 1}]


@pytest.mark.parametrize(("request_", "error"), [
    ({"service": "x"}, "there is no service 'x' (there are web, mail)"),
    ({"service": "mail", "backend": "c"}, "there is no backend 'c' (there are b)"),
    ({"service": "mail"}, None),
    ({"backend": "c"}, None),
])  # fmt: skip
def test_a_name_that_the_config_does_not_have_is_an_error_unless_it_had_sessions(forwarder, request_, error):
    for count in (0, 1):
        for op in ("kill", "sessions"):
            replies = forwarder.ask(op=op, **request_)
            forwarder.worker_answers(1, count)
            forwarder.worker_answers(2, 0)
            assert replies[0].get("error") == (None if count else error)
