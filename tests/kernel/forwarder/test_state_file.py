# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state file: what operators have said and the counters survive a stop, a crash of everything and a reboot."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _archive

from tests.kernel.forwarder.service_manager import ServiceManager, alive, kill, kill_all
from tests.lab import earlier
from tests.support import tcp
from tests.support.addresses import FAMILIES, address_of
from tests.support.forwarding import BACKENDS, Forwarder, make_config, web_and_raw
from tests.support.waiting import PATIENCE, eventually

WEB, RAW = 8000, 7000


@pytest.fixture(scope="module")
def lab(lab):
    for name in BACKENDS:
        lab.nginx(name, ports=[8080])
    return lab


def document(lab, **options):
    return make_config(*web_and_raw(lab, WEB, RAW), workers=2, **options)


@pytest.fixture
def stored(lab, tmp_path):
    """Start forwarders with a state directory, the next one after the other."""
    state = Path(tempfile.mkdtemp(prefix="state-", dir=lab.tmp))
    started = []

    def start(served, **options):
        started.append(Forwarder(lab, served, environment={"STATE_DIRECTORY": str(state)}, **options).serve())
        return started[-1]

    start.file = state / "state.json"
    yield start
    for forwarder in started:
        kill(alive([forwarder.process.pid, *forwarder.workers()] if forwarder.process.poll() is None else []))


def said(forwarder):
    """What operators have said: {service backend: (state, weight)}."""
    return {
        f"{service['name']} {one['name']}": (one["admin"], one["weight"])
        for service in forwarder.status()["services"]
        for one in service["backends"]
        if (one["admin"], one["weight"]) != ("ready", 1)
    }


def counted(forwarder):
    """Some of what only increases, from the metrics of the status document."""
    document = forwarder.status()
    (web,) = [one for one in document["services"] if one["name"] == "web"]
    backends = [[one["connections"], one["bytes_to_client"]] for one in web["backends"]]
    latency = [family["latency"] for one in web["backends"] for family in one["families"].values()]
    return [web["connections"], backends, latency, document["restarts"], document["reloads"]]


ENDS = {
    "a stop": lambda forwarder: forwarder.stop(),
    "kill -9 of everything": kill_all,
    "kill -9 of the supervisor": lambda forwarder: kill([forwarder.process.pid]),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_start_goes_on_with_the_state_file(lab, stored, end):
    """The control is the second backend, which was put back, and a start without the file."""
    forwarder = stored(document(lab))
    assert not forwarder.log("state restored")
    for family in FAMILIES * 3:
        assert tcp.get(lab, address_of(lab["a"], family), WEB)
    for backend, op, weight in (("b", "drain", None), ("c", "drain", None), ("c", "ready", None), ("d", "weight", 7)):
        answer = forwarder.ask(op, backend=backend, service="web", weight=weight)
        assert answer == {"ok": True, "changed": True, "services": ["web"]}
        assert json.loads(stored.file.read_text())["overrides"], "it is on the disk when the answer comes"
    assert [forwarder.ask("withdraw", reason="new disk")["changed"] for _time in range(2)] == [True, False]
    withdrawn = (False, "this proxy should not get clients: an operator has withdrawn it (new disk)")
    assert forwarder.healthy() == withdrawn
    words = {"web b": ("draining", 1), "web d": ("ready", 7)}
    assert said(forwarder) == words
    forwarder.settled()
    eventually(lambda: counted(forwarder)[0] == 6)
    forwarder.ask("drain", backend="b")  # in the other service as well; it saves the counters, too
    words["raw b"] = ("draining", 1)
    before, workers = counted(forwarder), forwarder.workers()
    end(forwarder)
    forwarder.process.wait(PATIENCE)
    eventually(lambda: not alive(workers), "the old workers have ended")
    with stored(document(lab), directory=restarted(forwarder)) as second:
        assert second.log("state restored")[0]["not_in_config"] == []
        assert said(second) == words
        assert second.healthy() == withdrawn
        assert second.reload().returncode == 0
        assert second.healthy() == withdrawn
        assert counted(second)[:-1] == before[:-1]
        assert tcp.get(lab, lab["a"].ipv4, WEB)
        eventually(lambda: counted(second)[0] == 7, "it counts on", second.show)
        assert second.status()["state_file"]["error"] is None
    stored.file.unlink()
    with stored(document(lab), directory=restarted(forwarder)) as third:
        assert (said(third), counted(third)[0]) == ({}, 0), "the control"
        eventually(lambda: third.healthy()[0], "it is healthy", third.show)


def restarted(forwarder):
    """Its directory as a new process finds it: RuntimeDirectory= begins empty."""
    (forwarder.directory / "forwarder.json").unlink(missing_ok=True)
    return forwarder.directory


@pytest.mark.ipv4_only
def test_a_file_that_cannot_be_used_is_kept_aside_and_the_forwarder_serves(lab, stored):
    content = '{"schema": 2, "everything": "else"}'
    stored.file.write_text(content)
    forwarder = stored(document(lab))
    assert tcp.get(lab, lab["a"].ipv4, WEB)
    (line,) = forwarder.log("state not restored")
    assert str(stored.file) in line["reason"]
    assert Path(line["kept_as"]).read_text() == content
    assert forwarder.ask("drain", backend="b") == {"ok": True, "changed": True, "services": ["web", "raw"]}
    assert len(json.loads(stored.file.read_text())["overrides"]) == 2


@pytest.mark.ipv4_only
def test_what_has_left_the_config_is_forgotten(lab, stored):
    """As a reload does. What is still there keeps its state."""
    forwarder = stored(document(lab))
    for backend in ("b", "c"):
        forwarder.ask("drain", backend=backend, service="web")
    forwarder.stop()
    smaller = document(lab)
    del smaller["services"][0]["backends"][2:]
    del smaller["services"][0]["backends"][0]
    with stored(smaller, directory=restarted(forwarder)) as second:
        assert said(second) == {"web c": ("draining", 1)}
        assert second.log("state restored")[0]["not_in_config"] == [["web", "b", {"state": "draining"}]]
    with stored(document(lab), directory=restarted(forwarder)) as third:
        assert said(third) == {"web c": ("draining", 1)}


@pytest.mark.ipv4_only
def test_a_disk_that_fails_or_hangs_is_named_and_nothing_waits_for_it(lab, stored):
    forwarder = stored(document(lab))
    eventually(stored.file.exists)
    directory = stored.file.parent
    directory.rename(f"{directory}.away")
    answer = forwarder.ask("drain", backend="b", service="web")
    assert (answer["ok"], answer["not_saved"]) == (True, f"{stored.file}: No such file or directory")
    assert said(forwarder) == {"web b": ("draining", 1)}, "it has effect all the same"
    assert forwarder.ask("drain", backend="b")["not_saved"]
    assert len(forwarder.log("state not saved")) == 1, "it is logged once"
    assert forwarder.status()["state_file"]["error"]
    Path(f"{directory}.away").rename(directory)
    lock = os.open(directory, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # the next one that writes hangs
    began = time.monotonic()
    assert "not written within 5 s" in forwarder.ask("maintenance", backend="c", service="web")["not_saved"]
    assert time.monotonic() - began > 4.9, "the control: it has waited"
    began = time.monotonic()
    assert forwarder.status()["services"]
    assert tcp.get(lab, lab["a"].ipv4, WEB)
    assert forwarder.reload().returncode == 0
    assert time.monotonic() - began < 4, "nothing else waits"
    os.close(lock)
    eventually(lambda: forwarder.log("state saved again"), "it is saved", forwarder.show)
    drained = [[service, "b", {"state": "draining"}] for service in ("web", "raw")]
    words = [*drained, ["web", "c", {"state": "maintenance"}]]
    eventually(lambda: json.loads(stored.file.read_text())["overrides"] == words)


@pytest.fixture
def manager(lab, tmp_path, stored):
    with closing(ServiceManager(lab.tmp / f"{tmp_path.name}.notify")) as manager:
        manager.state = stored.file.parent
        yield manager


def leave(manager, forwarder):
    """End it as for a restart of the service."""
    forwarder.process.send_signal(signal.SIGUSR1)
    manager.listen_until_end(forwarder.process)


@pytest.mark.ipv4_only
def test_a_handover_counts_more_than_the_file_also_of_version_0_1_0(lab, manager, stored, tmp_path):
    """After a rollback and an upgrade, a drain of before the rollback does not come back."""
    program = tmp_path / "program.pyz"

    def install(root):
        program.with_suffix(".new").write_bytes(_archive.archive(_archive.sources(root)))
        program.with_suffix(".new").replace(program)

    install(earlier.REPOSITORY)
    first = manager.start(lab, document(lab), archive=program).serve()
    manager.listen_until("READY")
    assert first.ask("drain", backend="b")["ok"]
    workers = first.workers()
    leave(manager, first)
    old_words = stored.file.read_text()
    install(earlier.unpack(tmp_path / "earlier"))
    state, manager.state = manager.state, None
    second = manager.start(lab, document(lab), directory=first.directory, archive=program).serve()
    assert (second.runtime()["version"], said(second)) == ("0.1.0", {}), "it knows nothing of them"
    while len(manager.kept) > 8:
        manager.listen_until("FDSTOREREMOVE")
    eventually(lambda: not alive(workers), "only its own workers accept", second.show)
    assert second.ask("drain", backend="c")["ok"]
    assert tcp.get(lab, lab["a"].ipv4, WEB)
    eventually(lambda: counted_accepted(second) == 1)
    install(earlier.REPOSITORY)  # as the role does: the running process becomes this version, and is then restarted
    assert second.reload().returncode == 0
    assert second.status()["state_file"] is None, "its unit has no state directory yet"
    assert stored.file.read_text() == old_words
    leave(manager, second)
    manager.state = state
    with manager.start(lab, document(lab), directory=first.directory, archive=program) as third:
        assert said(third) == {"web c": ("draining", 1)}
        assert counted_accepted(third) == 1
        eventually(lambda: stored.file.read_text() != old_words)
        overrides = json.loads(stored.file.read_text())["overrides"]
        assert overrides == [["web", "c", {"state": "draining"}]]


def counted_accepted(forwarder):
    return forwarder.status()["services"][0]["connections"]
