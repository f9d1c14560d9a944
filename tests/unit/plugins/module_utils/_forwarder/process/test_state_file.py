# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state file: what is read from it is what was written, or it is refused with a sentence."""

from __future__ import annotations

import json
import os
import stat

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import saved_counters, shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.totals import GenerationTotals
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import saver, state_file
from hypothesis import given
from hypothesis import strategies as st

NAMES = ("b", "c", "d")


def config(*names):
    backends = tuple(Backend(name, 80, ipv4=f"198.18.0.{ord(name)}", ipv6=f"2001:db8::{name}") for name in names)
    return Config(proxy_id=1, services=(Service("web", (), backends),))


@pytest.fixture
def region():
    """One with a different number in each cell of its two workers, and in each state."""
    region = shared_memory.Region(shared_memory.describe(config(*NAMES), 2))
    start = region.cell(0, "worker", shared_memory.WORKER_FIELDS[0])
    for cell in range(start, region.cell(2, "worker", shared_memory.WORKER_FIELDS[0])):
        region.cells[cell] = cell
    for number, field in enumerate(shared_memory.STATE_FIELDS):
        for target in range(len(region.targets)):
            region.set_state(field, target, 100 * number + target)
    yield region
    region.close()


def document(region=None, **values):
    tables = saved_counters.dump(GenerationTotals().totals([region]), region) if region else {}
    numbers = {"restarts": 3, "reloads": {"ok": 2, "failed": 1}, "drain_memory_ended": 4}
    return {"overrides": [["web", "b", {"state": "draining", "weight": 9}]], "counters": tables, **numbers, **values}


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / state_file.NAME)


def test_every_counter_is_read_as_it_was_written_and_gauges_and_times_are_not_stored(region, path):
    before = GenerationTotals().totals([region])
    state_file.write(document(region), path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    saved = state_file.read(path)
    assert saved == {**saved, **json.loads(json.dumps(document(region)))}
    new = shared_memory.Region(shared_memory.describe(config("c", "e"), 1))
    after = saved_counters.restore(saved["counters"], new).totals([new])
    volatile = shared_memory.GAUGES | shared_memory.TIMES
    for kind, name in (("worker", ()), ("service", ("web",)), ("target", ("web", "c", "ipv6"))):
        for field, number in before.of(kind, name).items():
            assert after.of(kind, name).get(field, 0) == (0 if field in volatile else number)
    assert after.target("web", "b", "ipv4", "connections") == 0, "it has left the config"
    place, was = new.targets.index(("web", "c", "ipv4")), region.targets.index(("web", "c", "ipv4"))
    for field in saved_counters.HEALTH_FIELDS:
        assert new.state(field, place) == region.state(field, was)
    assert new.state("health", place) == 0, "it is checked anew"
    new.close()


def place_and_time(path):
    found = os.stat(path)
    return found.st_ino, found.st_mtime_ns


def disk_is_full(_number):
    raise OSError(28, "No space left on device")


def test_an_unchanged_document_is_not_written_again_and_a_failed_write_leaves_the_file(region, path, monkeypatch):
    state_file.write(document(region), path)
    first = place_and_time(path)
    monkeypatch.setattr(state_file.runtime_file, "timestamp", lambda: "later")
    state_file.write(document(region), path)
    assert place_and_time(path) == first
    for change in ({"restarts": 4}, {"overrides": []}):
        state_file.write(document(region, **change), path)
        assert state_file.read(path)["written"] == "later"
    monkeypatch.setattr(os, "fsync", disk_is_full)
    with pytest.raises(OSError, match="No space left"):
        state_file.write(document(), path)
    assert state_file.read(path)["overrides"] == []
    assert os.listdir(os.path.dirname(path)) == [state_file.NAME]


COUNTERS = {"service": {"fields": ["connections"], "rows": [[["web"], [1]]]}}

TEST_UNUSABLE = [
    ("", "is not a state file"),
    ("[]", "has no schema number"),
    ("[" * 100000, "is not a state file"),
    ('{"schema": 1, "written": "2026', "is not a state file"),
    (b"\xff\xfe{}", "is not a state file"),
    ({"schema": True}, "has no schema number"),
    ({"schema": 2}, "has schema 2, and this version reads 1 (a newer version has written it)"),
    ({"schema": 0}, "has schema 0, and this version reads 1"),
    ({"written": 3}, "written: is not a time"),
    ({"overrides": {}}, "overrides: are not"),
    ({"overrides": [["web", "b"]]}, "overrides: are not"),
    ({"overrides": [["web", ["b"], {"state": "draining"}]]}, "overrides: are not"),
    ({"overrides": [["web", "b", {}]]}, "overrides: are not"),
    ({"overrides": [["web", "b", {"state": "ready"}]]}, "overrides: are not"),
    ({"overrides": [["web", "b", {"state": ["draining"]}]]}, "overrides: are not"),
    ({"overrides": [["web", "b", {"state": None}]]}, "overrides: are not"),
    ({"overrides": [["web", "b", {"state": "draining", "weight": None}]]}, "overrides: are not"),
    ({"overrides": [["web", "b", {"weight": 0}]]}, "overrides: are not"),
    ({"overrides": [["web", "b", {"weight": 65536}]]}, "overrides: are not"),
    ({"overrides": [["web", "b", {"weight": True}]]}, "overrides: are not"),
    ({"restarts": -1}, "restarts: is not a number"),
    ({"reloads": {"ok": 1}}, "reloads.failed: is not a number"),
    ({"reloads": 1}, "reloads.ok: is not a number"),
    ({"counters": []}, "counters: is not an object"),
    ({"counters": {"service": {"fields": ["connections"]}}}, "service: is not a table"),
    ({"counters": {"service": {"fields": [1], "rows": []}}}, "service: is not a table"),
    ({"counters": {"service": {"fields": ["connections"], "rows": [[["web"], [1, 2]]]}}}, "a number for each field"),
    ({"counters": {"service": {"fields": ["connections"], "rows": [[["web"], [1 << 63]]]}}}, "a row is not a name"),
    ({"counters": {"service": {"fields": ["connections"], "rows": [[["web"], [-1]]]}}}, "a row is not a name"),
    ({"counters": {"service": {"fields": ["connections"], "rows": [[["web"], [1.5]]]}}}, "a row is not a name"),
    ({"counters": {"service": {"fields": ["connections"], "rows": [["web", [1]]]}}}, "a row is not a name"),
]


@pytest.mark.parametrize(("content", "sentence"), TEST_UNUSABLE)
def test_a_file_that_cannot_be_used_is_refused(path, content, sentence):
    good = {"schema": 1, "written": "noon", **document(counters=COUNTERS)}
    with open(path, "w", encoding="utf-8") as stream:
        json.dump(good, stream)
    assert state_file.read(path) == good, "the control"
    text = json.dumps({**good, **content}) if isinstance(content, dict) else content
    with open(path, "wb") as stream:
        stream.write(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(state_file.Unusable) as caught:
        state_file.read(path)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 200


def test_only_a_regular_file_of_a_bounded_size_is_read(path, monkeypatch):
    assert state_file.read(path) is None
    os.mkfifo(path)
    with pytest.raises(state_file.Unusable, match="is not a regular file"):
        state_file.read(path)
    os.unlink(path)
    os.symlink("/dev/zero", path)
    with pytest.raises(OSError, match="symbolic links"):
        state_file.read(path)
    os.unlink(path)
    monkeypatch.setattr(state_file, "MOST_BYTES", 100)
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(" " * 101)
    with pytest.raises(state_file.Unusable, match="is longer than 100 bytes"):
        state_file.read(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["draining", "web", "b"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["fields", "rows", "service", "target", "state", "weight", "ok", "failed"]), inner
        )
    ),
    max_leaves=12,
)


@given(key=st.sampled_from(["written", "overrides", "counters", "restarts", "reloads"]), value=JSON)
def test_whatever_is_in_the_file_it_is_refused_or_can_be_used(tmp_path_factory, key, value):
    path = str(tmp_path_factory.getbasetemp() / "hostile.json")
    with open(path, "w", encoding="utf-8") as stream:
        json.dump({"schema": 1, "written": "noon", **document(counters=COUNTERS), key: value}, stream)
    try:
        saved = state_file.read(path)
    except state_file.Unusable:
        return
    region = shared_memory.Region(shared_memory.describe(config(*NAMES), 1))
    overrides = saver.Overrides()
    overrides.adopt(saved["overrides"])
    overrides.publish(region)
    saved_counters.restore(saved["counters"], region).totals([region])
    region.close()
