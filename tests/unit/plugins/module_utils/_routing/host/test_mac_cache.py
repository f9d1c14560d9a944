# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The cache of MACs, and how the engine falls back to it."""

from __future__ import annotations

import json

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.mac_cache import Macs
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import engine

from ..fakes import RETURN_PATH

A, A2 = "198.18.0.11", "198.18.0.12"
OLD, NEW = "02:00:00:00:00:11", "02:00:00:00:0a:0a"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "macs.json"


@pytest.mark.parametrize(("stored", "known"), [(True, {A: (OLD,)}), (False, {})])
def test_learnt_macs_are_stored_by_owner_if_there_is_a_path(path, stored, known):
    where = (str(path),) if stored else ()
    Macs(*where).learn("return_path", {A: [OLD]}, [A])
    assert Macs(*where).known("return_path") == known
    assert Macs(*where).known("another") == {}


def test_a_new_answer_replaces_the_cached_mac_silence_keeps_it_and_unlisted_addresses_are_forgotten(path):
    macs = Macs(str(path))
    macs.learn("return_path", {A: [OLD], A2: [NEW]}, [A, A2])
    macs.learn("return_path", {}, [A, A2])
    assert macs.known("return_path") == {A: (OLD,), A2: (NEW,)}
    macs.learn("return_path", {A: ["02:00:00:00:00:01"]}, [A, A2])
    assert macs.known("return_path") == {A: ("02:00:00:00:00:01",), A2: (NEW,)}
    macs.learn("another", {A2: [NEW]}, [A2])
    macs.learn("return_path", {}, [])
    assert json.loads(path.read_text()) == {"schema": 1, "macs": {"another": {A2: [NEW]}}}


@pytest.mark.parametrize("content", [
    "", "{", "[]", "null", '{"schema": 2, "macs": {}}', '{"schema": 1, "macs": {"return_path": {"x": ["y"]}}}',
])  # fmt: skip
def test_an_invalid_file_counts_as_empty(path, content):
    path.write_text(content)
    assert Macs(str(path)).known("return_path") == {}


def test_the_file_is_not_written_if_nothing_is_new(path):
    macs = Macs(str(path))
    macs.learn("return_path", {A: [OLD]}, [A])
    before = path.stat().st_ino, path.stat().st_mtime_ns
    macs.learn("return_path", {A: [OLD]}, [A])
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before


# --- the engine


def mark(name: str, number: int, via: str) -> dict:
    return {"name": name, "id": number, "mask": 255, "via": [via]}


def applied(host, path, *marks, check=False):
    data = {**RETURN_PATH, "rules": [], "routes": [], "sysctls": [], "marks": list(marks)}
    host.engine = engine.Host(**{**host.engine.__dict__, "macs": Macs(str(path))})
    outcome = engine.reconcile(documents.load(data), host.engine, engine.Options(check=check))
    return {mark.name: mark.macs for mark in outcome.after.marks}, outcome.waiting


def test_a_silent_proxy_gets_its_cached_mac_and_an_answer_takes_precedence_and_is_cached(host, path):
    Macs(str(path)).learn("return_path", {A: [OLD]}, [A])
    assert applied(host, path, mark("a", 11, A)) == ({"a": (OLD,)}, ())
    host.kernel.neighbours[A] = NEW
    assert applied(host, path, mark("a", 11, A), check=True) == ({"a": (NEW,)}, ())
    assert Macs(str(path)).known("return_path") == {A: (OLD,)}, "check mode caches nothing"
    assert applied(host, path, mark("a", 11, A)) == ({"a": (NEW,)}, ())
    assert Macs(str(path)).known("return_path") == {A: (NEW,)}


@pytest.mark.parametrize("live", [False, True])
def test_a_cached_mac_that_another_proxy_has_now_is_not_used(host, path, live):
    if live:
        host.kernel.neighbours[A] = OLD
        applied(host, path, mark("a", 11, A))
        path.unlink()
    else:
        Macs(str(path)).learn("return_path", {A: [OLD]}, [A])
    host.kernel.neighbours = {A2: OLD}
    macs, waiting = applied(host, path, mark("a", 11, A), mark("a2", 12, A2))
    assert macs == {"a": (), "a2": (OLD,)}
    assert len(waiting) == 1
