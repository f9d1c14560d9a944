# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Counters of kernel services: totals never go back, whatever becomes of the table and of the keeper."""

from __future__ import annotations

import json
import threading

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.datapath.counters import Reading
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.datapath.render import counter_name
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host import files
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.counters_file import CountersFile, add_up

from tests.support.waiting import eventually

from .test_service_connections import service

WEB = service()
NEW, IN, REFUSED = counter_name("new", WEB, WEB.servers[0]), counter_name("in", WEB, WEB.servers[0]), "denied"

# What the kernel's counter has, one reading after another, and the totals (packets, bytes) after each.
READINGS = [
    ([(5, 500), (7, 700)], [(5, 500), (7, 700)]),
    ([(5, 500), None, (2, 200)], [(5, 500), (5, 500), (7, 700)]),  # the table was removed, and seen to be missing
    ([(5, 500), (2, 200), (3, 300)], [(5, 500), (7, 700), (8, 800)]),  # removed and made again between two readings
    ([(5, 500, "1"), (9, 900, "2"), (9, 900, "2")], [(5, 500), (14, 1400), (14, 1400)]),  # it has counted more since
]


@pytest.mark.parametrize(("readings", "expected"), READINGS)
def test_a_counter_that_begins_again_adds_to_its_total(readings, expected):
    totals, found = {}, []
    for reading in readings:
        totals = add_up(totals, {} if reading is None else {"x": Reading(*reading)})
        found.append(totals["x"][:2])
    assert found == expected


def read(path) -> dict:
    return json.loads(path.read_text())


def test_the_file_has_totals_and_a_new_keeper_continues_them(tmp_path):
    path, times = tmp_path / "datapath.json", iter((100.0, 105.0, 200.0, 205.0, 210.0))
    first = CountersFile(str(path), lambda: next(times))
    first.load()
    first.set_open({("web", "b"): 2})
    first.update([WEB], {NEW: Reading(3, 0), IN: Reading(5, 500), "others": Reading(1, 1)})
    data = read(path)
    assert (data["time"], data["open_time"]) == (105.0, 100.0)
    backends = data["services"]["web"]["backends"]
    assert backends["b"] == {
        **{"connections": 3, "open": 2, "bytes_in": 500, "bytes_out": 0, "packets_in": 5, "packets_out": 0}
    }
    assert backends["c"]["open"] == 0
    assert "others" not in data["counters"]
    # The keeper was killed, and then somebody has removed the table.
    for counts, total in (({NEW: Reading(4, 0)}, 4), ({}, 4), ({NEW: Reading(1, 0)}, 5)):
        second = CountersFile(str(path), lambda: next(times))
        second.load()
        second.update([WEB], counts)
        assert read(path)["services"]["web"]["backends"]["b"]["connections"] == total
        assert read(path)["services"]["web"]["backends"]["b"]["open"] is None


@pytest.mark.parametrize(("boot", "total"), [("same", 4), ("next", 7)])
def test_a_copy_continues_the_totals_after_a_reboot(tmp_path, boot, total):
    path, saved = tmp_path / "run.json", tmp_path / "saved.json"
    first = CountersFile(str(path), lambda: 100.0, str(saved), lambda: "same\n")
    first.update([WEB], {NEW: Reading(3, 0)})
    first.save()
    path.unlink()  # as systemd does when the keeper stops
    second = CountersFile(str(path), lambda: 200.0, str(saved), lambda: boot)
    second.load()
    # In another boot, the kernel's counters are new ones, even if they are named and numbered like those of before.
    second.update([WEB], {NEW: Reading(4, 0)})
    assert read(path)["services"]["web"]["backends"]["b"]["connections"] == total
    second.update([WEB], {NEW: Reading(5, 0)})
    eventually(lambda: read(saved)["services"]["web"]["backends"]["b"]["connections"] == total, "saved once a minute")
    second.save()
    assert read(saved)["services"]["web"]["backends"]["b"]["connections"] == total + 1
    second.remove()
    assert not saved.exists()


def test_a_disk_that_hangs_or_is_full_delays_nothing_but_the_copy(tmp_path, monkeypatch):
    path, saved, disk = tmp_path / "run.json", tmp_path / "saved.json", threading.Event()
    write, full = files.write, [True]

    def slow(name, text):
        if name == str(saved):
            assert disk.wait(10)
            if full and full.pop():
                raise OSError("no space")
        write(name, text)

    monkeypatch.setattr(files, "write", slow)
    times = iter((100.0, 200.0, 300.0))
    file = CountersFile(str(path), lambda: next(times), str(saved), lambda: "same")
    for number in (1, 2):
        file.update([WEB], {NEW: Reading(number, 0)})
        assert read(path)["services"]["web"]["backends"]["b"]["connections"] == number
    disk.set()
    file.save()
    assert read(saved) == read(path)
    with pytest.raises(OSError, match="no space"):
        file.update([WEB], {})


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "counters": {"x": 1}}'])
def test_an_invalid_file_is_ignored(tmp_path, content):
    path = tmp_path / "datapath.json"
    path.write_text(content)
    file = CountersFile(str(path))
    file.load()
    file.add_to_log(1, 2)
    file.update([WEB], {NEW: Reading(1, 0)})
    data = read(path)
    assert data["services"]["web"]["backends"]["b"]["connections"] == 1
    assert data["log"] == {"overruns": 1, "lines_dropped": 2}
    file.remove()
    assert not path.exists()
