# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Configs taken in place: the workers stay, and so do their sessions; what cannot be taken leads to new processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

import pytest

from tests.support import processes, tcp, udp
from tests.support.addresses import FAMILIES, address_of
from tests.support.forwarding import BACKENDS, Forwarder, make_config, make_service
from tests.support.waiting import eventually

WEB, OLD, DATAGRAMS, RANGE = 8000, 7000, 7001, 6100
SLICES = [{"first": 41000, "last": 41999}, {"first": 42000, "last": 42999}, None]
CHANGES = int(os.environ.get("L4PROXY_CHANGES", "24"))
GROWTH = 1 << 20  # bytes by which a process may grow, whatever the number of changes


def document(lab, step=0, **options):
    """The config after ``step`` changes: services "old" and "datagrams" stay, with other settings."""
    settings = {
        "limits": {"connections": 100 + step, "connections_per_client": 50} if step % 4 < 2 else {},
        "idle_timeout": 300 + step,
        "balance": ("round_robin", "least_connections", "source_hash", "random")[step % 4],
    }
    backends = [name for number, name in enumerate(BACKENDS) if number != step % 4]
    web = make_service(lab, "web", WEB, 9001, backends, **settings, source_port="any")
    for number, backend in enumerate(web["backends"]):
        backend["weight"] = 1 + (step + number) % 3
    if step % 2:
        web["health"] = {"interval": 1 + step % 5}
    services = [
        web,
        make_service(lab, "old", OLD, 9000, ["b", *(["c"] if step % 3 else [])], idle_timeout=600 + step),
        make_service(lab, "datagrams", DATAGRAMS, 9000, ["b"], protocol="udp", idle_timeout=600 + step),
    ]
    for backend in services[1]["backends"]:
        backend["backup"] = backend["name"] != "b"
    if step % 5 > 1:
        ranged = make_service(lab, f"range{step % 5}", RANGE, 9001, ["d"])
        for listener in ranged["listen"]:
            listener["port"] = f"{RANGE}-{RANGE + step % 5}"
        services.append(ranged)
    if SLICES[step % 3]:
        options["source_ports"] = SLICES[step % 3]
    return make_config(*services, **{"workers": 2, **options})


def change(forwarder, new) -> dict:
    """Reload with this config, without ``l4proxy reload``, which takes longer; return the result."""
    before = forwarder.runtime()["last_reload"]["attempt"]
    forwarder.configure(new)
    forwarder.process.send_signal(signal.SIGHUP)
    eventually(lambda: forwarder.runtime()["last_reload"]["attempt"] > before, "the reload is done", forwarder.show)
    return forwarder.runtime()["last_reload"]


@pytest.fixture
def forwarder(lab):
    with tcp.answering(lab, BACKENDS, 9001), Forwarder(lab, document(lab)) as forwarder:
        yield forwarder


class Sessions:
    """A TCP connection and a UDP session of each family."""

    def __init__(self, lab, stack, servers):
        self._lab = lab
        self._pairs, self._sockets = [], {}
        for family in FAMILIES:
            with tcp.listen(lab, "b", 9000, family) as listener:
                self._pairs += map(stack.enter_context, tcp.pair(lab, listener, OLD))
            address = address_of(lab["a"], family)
            sock = stack.enter_context(udp.client(lab, address))
            self._sockets[sock] = address, udp.who(sock, (address, DATAGRAMS))
        assert servers

    def assert_open(self):
        for client, server in zip(self._pairs[::2], self._pairs[1::2]):
            tcp.assert_open(client, server)
        for sock, (address, seen) in self._sockets.items():
            assert udp.who(sock, (address, DATAGRAMS)) == seen


@pytest.fixture
def sessions(lab, forwarder):
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(udp.serving(lab, 9000, ["b"]))
        yield Sessions(lab, stack, servers)


def processes_of(forwarder):
    return [forwarder.process.pid, *forwarder.workers()]


def settled(forwarder) -> bool:
    """Whether each process has the memory of one generation, and only the checker of the last one runs."""
    maps = [Path(f"/proc/{pid}/maps").read_text(encoding="utf-8") for pid in processes_of(forwarder)]
    return {text.count("l4proxy-shared") for text in maps} == {1} and len(forwarder.children("l4-checker")) == 1


def proportional(pid: int) -> int:
    """Memory of a process in bytes; of shared pages its part (PSS)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1]) << 10


def assert_as_configured(lab, config):
    """Each new connection is served as this config says."""
    web = config["services"][0]
    addresses = {backend["name"] for backend in web["backends"]}
    ports = (
        range(config["source_ports"]["first"], config["source_ports"]["last"] + 1) if "source_ports" in config else ()
    )
    for family in FAMILIES:
        for _connection in range(3):
            with tcp.connect(lab, address_of(lab["a"], family), WEB) as sock:
                address, port = tcp.receive_all(sock).decode().split()
            assert address == address_of(lab["client"], family)
            assert int(port) in ports or not ports
    assert addresses
    width = {service["name"]: service for service in config["services"]}
    ranged = next((int(name[5:]) for name in width if name.startswith("range")), None)
    assert [tcp.refused(lab, RANGE + number) for number in range(6)] == [
        ranged is None or number > ranged for number in range(6)
    ]


def test_many_changes_keep_workers_sessions_memory_and_descriptors(lab, forwarder, sessions):
    """Backends, listeners, ranges, limits, slices, timeouts, weights and health checks come and go."""
    pids, usage = forwarder.workers(), {}
    for step in range(1, CHANGES + 1):
        config = document(lab, step)
        result = change(forwarder, config)
        assert (result["ok"], result["in_place"], result["new_processes_because"]) == (True, True, None)
        assert_as_configured(lab, config)
        sessions.assert_open()
        if step in (CHANGES // 2, CHANGES):
            change(forwarder, document(lab))
            eventually(lambda: settled(forwarder), "nothing of older generations is left", forwarder.show)
            usage[step] = {pid: (proportional(pid), len(processes.open_files(pid))) for pid in processes_of(forwarder)}
    assert forwarder.workers() == pids
    first, last = usage.values()
    for pid, (memory, descriptors) in last.items():
        assert descriptors == first[pid][1]
        assert memory < first[pid][0] + GROWTH
    status = forwarder.status()
    assert status["generation"] == CHANGES + 3
    assert {worker["generation"] for worker in status["workers"]} == {status["generation"]}
    assert not forwarder.log("defect")
