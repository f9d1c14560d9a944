# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reloads: no connection is lost, whatever is wrong with the new config or the new archive."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
import zipapp
from pathlib import Path

import pytest

from tests.lab import netns, wiring
from tests.support import tcp
from tests.support.forwarding import Forwarder, build_archive, make_config, make_service, web_and_raw
from tests.support.waiting import eventually

WEB, RAW = 8000, 7000
FILES = ["admin.sock", "forwarder.json", "forwarder.lock"]


def document(lab, *more, **options):
    return make_config(*web_and_raw(lab, WEB, RAW), *more, **options)


@pytest.fixture
def forwarder(lab, servers):
    with Forwarder(lab, document(lab)) as forwarder:
        yield forwarder


@pytest.mark.ipv4_only
def test_streams_of_many_generations_stay_open(lab, servers, listener, tmp_path):
    streams = []
    with Forwarder(lab, document(lab), archive=build_archive(tmp_path)) as forwarder:
        for _reload in range(5):
            streams.append(tcp.pair(lab, listener, RAW))
            forwarder.change_archive()
            assert forwarder.reload().stdout.endswith("by new processes: another archive is installed\n")
        assert len(forwarder.workers()) == len(streams) + 1
        for client, server in streams:
            with client, server:
                tcp.assert_open(client, server)


@pytest.mark.ipv4_only
@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (lambda text: text.replace('"port": 8080', '"port": 70000', 1), ["70000 is not a port"]),
        (lambda text: text[:-20], ["not a JSON document"]),
        (
            lambda text: text.replace('"balance"', '"x"').replace('"name": "raw"', '"nane": "raw"'),
            ["services[1].name: is required", "services[1].nane: is not a known key"],
        ),
    ],
)
def test_a_bad_config_keeps_the_old_one_and_the_runtime_file_says_why(lab, forwarder, change, reasons):
    before, worker = forwarder.runtime(), forwarder.workers()
    forwarder.configure(change(forwarder.config.read_text(encoding="utf-8")))
    result = forwarder.reload()
    assert result.returncode == 1
    after = forwarder.runtime()
    for reason in reasons:
        assert reason in after["last_reload"]["error"]
        assert reason in result.stderr
    assert after.pop("last_reload")["ok"] is False
    before.pop("last_reload")
    assert after == before, "what serves has not changed, and so neither has what is said of it"
    assert forwarder.workers() == worker
    assert tcp.get(lab, lab["a"].ipv4, WEB)


@pytest.mark.ipv4_only
def test_after_a_failed_reload_a_replaced_worker_has_the_old_config(lab, forwarder):
    """The new config needs a port that is taken, which shows only when it is bound."""
    with lab["a"].inside():
        squatter = socket.create_server(("0.0.0.0", 6000))
    with squatter:
        forwarder.configure(document(lab, make_service(lab, "new", 6000, 8080), make_service(lab, "newer", 6001, 8080)))
        result = forwarder.reload()
        assert result.returncode == 1
        assert "service new: cannot listen on 0.0.0.0:6000: EADDRINUSE: Address already in use" in result.stderr
        assert tcp.refused(lab, 6001), "all or nothing"
        os.kill(forwarder.workers()[0], signal.SIGKILL)
        assert tcp.get(lab, lab["a"].ipv4, WEB)
        assert forwarder.runtime()["generation"] == 1
    assert forwarder.reload().returncode == 0
    assert tcp.get(lab, lab["a"].ipv4, 6001)
    assert forwarder.runtime()["generation"] == 2


@pytest.mark.ipv4_only
def test_a_failed_reload_while_no_worker_runs_starts_the_old_config_again(lab, forwarder):
    """No worker runs while a replacement is delayed, and the new config cannot be served."""
    deaths = 6  # the last replacement is delayed by 2 s, longer than the check and the exec take
    for death in range(deaths):
        eventually(lambda: len(forwarder.workers()) == 1, "a worker is there", forwarder.show)
        os.kill(forwarder.workers()[0], signal.SIGKILL)
        eventually(lambda death=death: len(forwarder.log("worker to be replaced")) > death, "its death is noticed")
    with lab["a"].inside():
        squatter = socket.create_server(("0.0.0.0", 6000))
    with squatter:
        forwarder.configure(document(lab, make_service(lab, "new", 6000, 8080)))
        result = forwarder.reload()
        assert result.returncode == 1
        assert "cannot listen on 0.0.0.0:6000" in result.stderr
    assert len(forwarder.log("worker to be replaced")) == deaths
    assert tcp.get(lab, lab["a"].ipv4, WEB) in (b"b\n", b"c\n", b"d\n")
    assert forwarder.runtime()["generation"] == 1


def test_a_reload_adds_and_removes_listeners(lab, forwarder, listener):
    client, server = tcp.pair(lab, listener, RAW)
    forwarder.configure(make_config(make_service(lab, "web2", 8001, 8080)))
    assert forwarder.reload().returncode == 0
    assert tcp.get(lab, lab["a"].ipv6, 8001)
    eventually(lambda: tcp.refused(lab, WEB) and tcp.refused(lab, RAW), "what is no longer configured is closed")
    with client, server:
        tcp.assert_open(client, server)


@pytest.mark.ipv4_only
@pytest.mark.parametrize(
    "gone", [["admin.sock"], ["forwarder.json"], ["admin.sock", "forwarder.json", "forwarder.lock"]]
)
def test_a_reload_creates_removed_runtime_files_again(lab, forwarder, gone):
    for name in gone:
        (forwarder.directory / name).unlink()
    if len(gone) > 1:  # systemd knows the process
        forwarder.environment["MAINPID"] = str(forwarder.process.pid)
    result = forwarder.reload()
    assert result.stdout.startswith("reloaded: generation 2 serves"), result.stderr
    assert forwarder.status()["pid"] == forwarder.runtime()["pid"] == forwarder.process.pid
    assert sorted(path.name for path in forwarder.directory.iterdir() if path.name.startswith(("a", "f"))) == FILES
    assert forwarder.stop() == 0
    assert [path.name for path in forwarder.directory.iterdir() if path.name in FILES] == ["forwarder.lock"]


@pytest.mark.ipv4_only
@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("file_is_there", [True, False])
def test_a_reload_reports_its_result_even_if_the_runtime_directory_is_full(lab, servers, tmp_path, good, file_is_there):
    wiring.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)])
    try:
        with Forwarder(lab, document(lab), directory=tmp_path) as forwarder:
            if not good:
                text = forwarder.config.read_text(encoding="utf-8")
                forwarder.configure(text.replace('"port": 8080', '"port": 70000', 1))
            if not file_is_there:
                (tmp_path / "forwarder.json").unlink()
            with contextlib.suppress(OSError), open(tmp_path / "filler", "wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(4096))
            begun = time.monotonic()
            result = forwarder.reload()
            assert time.monotonic() - begun < 30
            if good:
                assert result.stdout.startswith("reloaded: generation 2 serves"), result.stderr
            else:
                assert "70000 is not a port" in result.stderr
            assert bool(forwarder.runtime()) == file_is_there
    finally:
        wiring.run(["umount", "-l", str(tmp_path)])


@pytest.mark.ipv4_only
def test_simultaneous_reload_signals_run_one_after_another(lab, forwarder):
    for _round in range(5):
        forwarder.process.send_signal(signal.SIGHUP)
        time.sleep(0.02)
    eventually(lambda: forwarder.runtime()["generation"] >= 2, "a reload is done", forwarder.show)
    assert forwarder.reload().returncode == 0
    assert tcp.get(lab, lab["a"].ipv4, WEB)
    eventually(lambda: len(forwarder.workers()) == 1, "old workers have ended", forwarder.show)
    assert not forwarder.log("reload failed")


def archive(directory: Path, name: str, main="from l4proxy._cli import main\nraise SystemExit(main())\n") -> Path:
    """A zip archive of the engines, as the roles install it."""
    tree = directory / f"{name}.tree"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(netns.engine_path() / "l4proxy", tree / "l4proxy", ignore=ignore)
    (tree / "__main__.py").write_text(main, encoding="utf-8")
    zipapp.create_archive(tree, directory / name)
    return directory / name


DEFECT = """
from l4proxy import _cli
from importlib import import_module
def defect(*_arguments, **_named):
    raise ValueError("a defect")
import_module("l4proxy._forwarder.{module}").{name} = defect
raise SystemExit(_cli.main())
"""


@pytest.mark.ipv4_only
@pytest.mark.parametrize(
    ("module", "name", "serving"),
    [
        ("counters.shared_memory", "describe", 1),
        ("process.children", "spawn_worker", 1),
        ("process.listeners", "bind_missing", 1),
        ("process.listeners", "settle", 2),
    ],
)
def test_a_defect_in_the_new_archive_never_stops_the_service(lab, servers, listener, tmp_path, module, name, serving):
    """The config check does not reach the defect. Either the old workers continue or the new ones serve."""
    first, spoilt = archive(tmp_path, "1.pyz"), archive(tmp_path, "2.pyz", DEFECT.format(module=module, name=name))
    link = tmp_path / "l4proxy.pyz"
    link.symlink_to(first)
    with Forwarder(lab, document(lab), archive=link) as forwarder:
        client, server = tcp.pair(lab, listener, RAW)
        (tmp_path / "new").symlink_to(spoilt)
        (tmp_path / "new").replace(link)
        forwarder.configure(document(lab, make_service(lab, "new", 6000, 8080)))
        result = forwarder.reload()
        assert result.returncode == (0 if serving == 2 else 1)
        assert "internal error: ValueError('a defect') at " in result.stderr or serving == 2
        assert forwarder.runtime()["generation"] == serving
        assert tcp.refused(lab, 6000) == (serving == 1)
        assert tcp.get(lab, lab["a"].ipv4, WEB)
        with client, server:
            tcp.assert_open(client, server)


@pytest.mark.ipv4_only
def test_a_reload_switches_to_the_installed_archive_unless_it_is_broken(lab, servers, tmp_path):
    first, second = archive(tmp_path, "1.pyz"), archive(tmp_path, "2.pyz", "from l4proxy._cli import main as m\nm()\n")
    broken = archive(tmp_path, "3.pyz", "import l4proxy.missing\n")
    link = tmp_path / "l4proxy.pyz"
    link.symlink_to(first)

    def install(target):
        (tmp_path / "new").symlink_to(target)
        (tmp_path / "new").replace(link)

    with Forwarder(lab, document(lab), archive=link) as forwarder:
        assert forwarder.runtime()["archive"]["path"] == str(first)
        sums = {forwarder.runtime()["archive"]["sha256"]}
        install(broken)
        result = forwarder.reload()
        assert result.returncode == 1
        assert "No module named 'l4proxy.missing'" in result.stderr
        assert forwarder.runtime()["archive"]["path"] == str(first)
        first.unlink()  # a running archive must not need its file
        assert tcp.get(lab, lab["a"].ipv4, WEB)
        install(second)
        assert forwarder.reload().returncode == 0
        assert forwarder.runtime()["archive"]["path"] == str(second)
        assert forwarder.runtime()["archive"]["sha256"] not in sums
        assert tcp.get(lab, lab["a"].ipv4, WEB)
        link.unlink()
        assert forwarder.reload().returncode == 1
        assert tcp.get(lab, lab["a"].ipv4, WEB)


@pytest.mark.ipv4_only
@pytest.mark.parametrize(
    ("name", "said", "logged"),
    [
        ("prepare", "by new processes: worker 0: internal error: ValueError('a defect') at ", "new processes"),
        ("Change.use", "in place", "worker not changed"),
    ],
)
def test_a_worker_that_cannot_take_a_config_keeps_its_connections(lab, servers, listener, tmp_path, name, said, logged):
    """Before the switch the reload goes on with new processes, after it this worker is replaced."""
    spoilt = archive(tmp_path, "1.pyz", DEFECT.format(module="process.config_change", name=name))
    with Forwarder(lab, document(lab), archive=spoilt) as forwarder:
        client, server = tcp.pair(lab, listener, RAW)
        forwarder.configure(document(lab, make_service(lab, "new", 6000, 8080)))
        result = forwarder.reload()
        assert result.stdout.startswith("reloaded: generation 2 serves (version ")
        assert f"), {said}" in result.stdout
        (line,) = forwarder.log(logged)
        assert "ValueError('a defect')" in line["reason"]
        assert tcp.get(lab, lab["a"].ipv4, 6000)
        assert len(forwarder.workers()) == 2
        with client, server:
            tcp.assert_open(client, server)
        eventually(lambda: len(forwarder.workers()) == 1, "the old worker ends with its connection", forwarder.show)
