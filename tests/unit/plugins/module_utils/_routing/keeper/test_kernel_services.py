# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""When the keeper reads states, searches conntrack, counts and publishes; with a clock, and without a kernel."""

from __future__ import annotations

import json
import logging
import select
from dataclasses import replace
from types import SimpleNamespace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.datapath.model import Live
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.documents import Document
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import RoutingError
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.backend_states import Reader
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper import kernel_services
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.counters_file import CountersFile
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile.host import Host

from .test_service_connections import entry, service

DOCUMENT = Document("kernel_datapath", 204, services=(service(),))


class Kernel:
    """The kernel and the monitor as KernelServices uses them; each access is in ``done``, and costs ``cost``."""

    def __init__(self, monkeypatch, tmp_path):
        self.now, self.cost, self.used, self.done = 0.0, 0.0, 0.0, []
        self.exists, self.outdated, self.fails, self.entries = True, False, None, []
        self.path, self.expected, self.attended = tmp_path / "backends.json", [], []
        monkeypatch.setattr(kernel_services, "conntrack_entries", self)
        monkeypatch.setattr(kernel_services, "counters", self)
        monkeypatch.setattr(kernel_services, "live_services", self)
        states, lock = Reader(str(self.path)), str(tmp_path / "run" / "lock")
        host = Host(make_datapath=lambda _runner: self, lock=lock, backend_states=states)
        sessions = SimpleNamespace(descriptor=None, missing=(0, 0), follow=lambda *_all: None, close=lambda: None)
        file = CountersFile(str(tmp_path / "run" / "datapath.json"))
        clocks = (lambda: self.now, lambda: self.used)
        self.services = kernel_services.KernelServices(host, self, file, lambda: self.outdated, *clocks, sessions)

    def _do(self, what):
        self.done.append(what)
        self.used += self.cost
        if self.fails == what:
            raise OSError(12, "Cannot allocate memory")

    def table(self, host, _document):
        return host.backend_states().services

    def read(self):
        return Live(exists=self.exists, generation=b"\0\0\0\x05")

    def write(self, _live, table):
        self._do(f"write {json.dumps(table)}")
        return bool(table)

    def listed(self, server=None):
        self._do("search" if server else "count")
        return iter(self.entries)

    def delete(self, entries):
        self._do(f"forget {len(entries)}")
        return len(entries)

    def readings(self):
        self._do("publish")
        return {}

    def attend(self, descriptor):
        self.attended = [descriptor]

    def expect(self, generation):
        self.expected.append(generation)

    def publish(self, **states):
        self.path.write_text(json.dumps({"schema": 1, "services": {"web": states}}))

    def run(self, until):
        """What is done until then, as a list of (time, what)."""
        found = []
        while self.now <= until:
            self.done = []
            if self.services.tend(select.select(self.attended, [], [], 0)[0]):
                self.done.append("pass")
            found += [(round(self.now, 2), what) for what in self.done]
            self.now += max(0.01, self.services.sleep(self.now))
        return found


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    return Kernel(monkeypatch, tmp_path)


def of(found, what):
    return [at for at, done in found if done == what]


def test_without_services_nothing_is_due(kernel):
    assert kernel.services.sleep(0.0) == float("inf")
    kernel.services.follow(None)
    assert not kernel.services.tend([])
    assert kernel.done == []


def test_after_a_pass_everything_is_read_once_and_then_by_the_clock(kernel):
    kernel.services.follow(DOCUMENT)
    found = kernel.run(121.0)
    assert of(found, "write {}") == [0.0]
    assert of(found, "count")[:3] == of(found, "publish")[:3] == [0.0, 5.0, 10.0]
    assert of(found, "search") == [60.0, 120.0]
    assert kernel.expected == []


def test_what_costs_much_is_done_seldom(kernel):
    kernel.cost = 0.5
    kernel.services.follow(DOCUMENT)
    assert of(kernel.run(250.0), "count") == [0.0, 100.0, 200.0]


def test_a_change_of_states_is_written_and_conntrack_searched_at_once_and_a_second_later(kernel):
    kernel.services.follow(DOCUMENT)
    kernel.run(0.0)
    kernel.entries = [entry(replied=False), entry()]
    kernel.publish(b="down")
    kernel.now = 2.0
    found = kernel.run(4.0)
    (written,) = (at for at, what in found if what.startswith("write"))
    assert [at - written for at in of(found, "search")] == [0, 0, 1.0, 1.0]  # the service's address, and b
    assert of(found, "forget 1")[0] == written
    assert kernel.expected == [6]


def test_counting_very_many_connections_does_not_delay_a_change(kernel):
    kernel.services.follow(DOCUMENT)
    kernel.run(0.0)

    def many():
        for number in range(100_000):
            if number == 50_000:
                kernel.publish(b="down")
            yield entry()

    kernel.entries, kernel.now = many(), 5.0
    found = kernel.run(5.5)
    (written,) = (at for at, what in found if what.startswith("write"))
    assert written < 5.1
    kernel.entries = []
    assert of(kernel.run(7.0), "count") == [6.0]


def test_states_that_change_all_the_time_use_a_bounded_part_of_the_cpu(kernel):
    kernel.services.follow(DOCUMENT)
    kernel.run(0.0)
    kernel.cost, writes, searches = 0.01, [], 0
    for number in range(200):
        kernel.publish(b=("down", "up")[number % 2])
        found = kernel.run(kernel.now + 0.009)
        writes += [at for at, what in found if what.startswith("write")]
        searches += len(of(found, "search"))
    assert len(writes) > 5
    assert kernel.used < kernel.now / 3


def test_a_missing_table_needs_a_pass_and_is_tried_again_a_second_later(kernel):
    kernel.exists = False
    kernel.services.follow(DOCUMENT)
    found = kernel.run(0.5)
    assert of(found, "pass") == [0.0]
    kernel.now = 0.5
    kernel.services.follow(DOCUMENT)
    assert of(kernel.run(1.1), "pass") == [1.0]


@pytest.mark.parametrize(
    ("exists", "outdated", "restored"), [(False, False, True), (True, False, False), (False, True, False)]
)
def test_a_table_that_is_missing_is_restored_before_the_pass_unless_a_run_has_removed_it(
    kernel, exists, outdated, restored
):
    kernel.publish(c="down")
    kernel.services.restore()
    kernel.services.follow(DOCUMENT)
    kernel.run(0.0)
    kernel.exists, kernel.outdated, kernel.done = exists, outdated, []
    kernel.services.restore()
    assert (kernel.services.restored, len(kernel.done)) == (restored, restored)


def test_a_run_that_holds_the_lock_is_waited_for_by_a_pass(kernel, monkeypatch):
    def locked(_path, timeout):
        raise RoutingError(f"timed out after {timeout} s")

    monkeypatch.setattr(kernel_services.files, "locked", locked)
    kernel.services.follow(DOCUMENT)
    assert of(kernel.run(0.0), "pass") == [0.0]


def test_what_fails_is_tried_again_and_logged_once(kernel, caplog):
    kernel.services.follow(DOCUMENT)
    kernel.fails = "count"
    assert of(kernel.run(3.5), "count") == [0.0, 1.0, 2.0, 3.0]
    assert caplog.text.count("Cannot allocate memory") == 1
    kernel.fails = None
    assert of(kernel.run(10.0), "count") == [4.0, 9.0]


def test_when_the_services_are_gone_so_is_the_file(kernel, tmp_path):
    kernel.services.follow(DOCUMENT)
    kernel.run(0.0)
    assert (tmp_path / "run" / "datapath.json").exists()
    kernel.services.follow(replace(DOCUMENT, services=(service(log="none"),)))
    assert (tmp_path / "run" / "datapath.json").exists()
    kernel.services.follow(None)
    assert not (tmp_path / "run" / "datapath.json").exists()
    assert kernel.services.sleep(kernel.now) == float("inf")


def test_only_declared_names_are_logged_as_they_are(kernel, caplog):
    caplog.set_level(logging.INFO)
    kernel.services.follow(DOCUMENT)
    kernel.run(0.0)
    services = {"web": {"b": "down", "c": "up", "x\nforged": "down"}, "y\nforged": {"b": "down"}}
    kernel.path.write_text(json.dumps({"schema": 1, "services": services}))
    kernel.now = 1.0
    kernel.run(3.0)
    assert "backends of kernel services: web/b down (" in caplog.text
    assert "\nforged" not in caplog.text


@pytest.mark.parametrize(("said", "sentences"), [
    ('{"schema": 1, "services": {"web": {"x": "up"}}}', ["states of backends that no document has are ignored: web/x"]),
    ("{", ["it is not valid JSON"]),
])  # fmt: skip
def test_what_is_wrong_with_the_published_states_is_logged_once(kernel, caplog, said, sentences):
    kernel.path.write_text(said)
    for _time in range(3):
        kernel.services.follow(DOCUMENT)
        kernel.run(kernel.now + 0.5)
    for sentence in sentences:
        assert caplog.text.count(sentence) == 1
    # Somebody who makes up names all the time does not fill the log.
    caplog.clear()
    began = kernel.now
    for number in range(300):
        kernel.path.write_text(json.dumps({"schema": 1, "services": {f"z{number}": {}}}))
        kernel.run(kernel.now)
    assert len(caplog.records) <= 2 + (kernel.now - began) / kernel_services.SAY
