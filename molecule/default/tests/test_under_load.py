# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients send requests continuously while the forwarder is killed or restarted and while backends are updated."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.waiting import PATIENCE, eventually

PORTS = (80, 81, 82)
CLIENTS = 6
DRAIN_TIMEOUT = 30.0  # of a stop, by default
UPDATE = Path(__file__).with_name("update.yml")
FAILURES = ("failed_refused", "failed_unreachable", "failed_timeout", "failed_reset", "failed_local")


class Clients:
    """Results of clients: ``served`` as (begun, ended), ``errors`` as (begun, error); monotonic seconds."""

    def __init__(self, lab):
        self.served, self.errors = [], []
        self._client, self._stopped, self._lock = lab["client"], threading.Event(), threading.Lock()
        self._targets = itertools.cycle(
            [(address, port) for port in PORTS for address in (lab["a"].ipv4, lab["a"].ipv6)]
        )

    def send_requests(self):
        """Send requests until stopped. A connection that has to wait is not an error."""
        with self._client.inside():
            while not self._stopped.is_set():
                with self._lock:
                    target = next(self._targets)
                begun = time.monotonic()
                try:
                    error = exchange(target)
                except OSError as failure:
                    error = f"{target}: {type(failure).__name__} {failure}"
                with self._lock:
                    if error is None:
                        self.served.append((begun, time.monotonic()))
                    else:
                        self.errors.append((begun, error))

    def stop(self):
        self._stopped.set()

    def wait_for_more(self, number=20):
        """Wait until ``number`` more requests have been served."""
        wanted = len(self.served) + number
        eventually(lambda: len(self.served) >= wanted)


def exchange(target):
    """Send one request; return None if it was answered, else the error."""
    with socket.create_connection(target, timeout=PATIENCE) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with sock.makefile("rb") as stream:
            answer = stream.read()
    return None if b" 200 " in answer[:15] else f"{target}: answered {answer[:40]!r}"


@contextmanager
def clients(lab):
    with ThreadPoolExecutor(CLIENTS) as pool:
        requests = Clients(lab)
        tasks = [pool.submit(requests.send_requests) for _client in range(CLIENTS)]
        try:
            requests.wait_for_more()
            yield requests
        finally:
            requests.stop()
        for task in tasks:
            task.result()


def supervisor(lab):
    done = lab["a"].run(["cat", "/run/l4proxy/forwarder.json"], check=False)
    return json.loads(done.stdout)["pid"] if done.stdout else None


def failures(lab):
    """Return the number of failed connects per backend, by its name."""
    services = json.loads(lab["a"].run(["l4proxy", "status", "--json"]).stdout)["services"]
    failed = {}
    for backend in (backend for service in services for backend in service["backends"]):
        failed[backend["name"]] = failed.get(backend["name"], 0) + sum(backend[failure] for failure in FAILURES)
    return failed


def last_entered(lab, name):
    """Return when the unit last entered a state, in seconds of the machine's monotonic clock."""
    show = ["systemctl", "show", f"--property={name}TimestampMonotonic", "--value", "l4proxy-forwarder"]
    return int(lab["a"].run(show).stdout) / 1e6


class Streams:
    """Long-lived connections, half of them over IPv6, on which the client sends further requests."""

    COUNT = 10

    def __init__(self, lab):
        addresses = (lab["a"].ipv4, lab["a"].ipv6)
        with lab["client"].inside():
            self._socks = [
                socket.create_connection((addresses[number % 2], PORTS[0]), PATIENCE) for number in range(self.COUNT)
            ]

    def alive(self):
        """Return how many of them answer a request."""
        return sum(self._answers(sock) for sock in self._socks)

    def _answers(self, sock):
        try:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: l4proxy\r\n\r\n")
            return b" 200 " in sock.recv(4096)[:15]
        except OSError:
            return False

    def close(self):
        for sock in self._socks:
            sock.close()


@pytest.fixture
def streams(lab):
    held = Streams(lab)
    assert held.alive() == Streams.COUNT
    yield held
    held.close()


def workers(lab):
    """Return the pids of the forwarder's worker processes, including draining ones."""
    return set(lab["a"].run(["pgrep", "l4-worker"], check=False).stdout.split())


REPLACED = {
    "killed": ["kill", "--kill-whom=main", "--signal=KILL"],
    "restarted": ["restart"],
}


@pytest.mark.parametrize("verb", REPLACED.values(), ids=REPLACED)
def test_no_client_is_refused_or_cut_while_the_supervisor_is_replaced(lab, streams, verb):
    """The old workers keep their connections; new clients wait for the next supervisor."""
    before, old, begun, since = supervisor(lab), workers(lab), time.monotonic(), time.time()
    with clients(lab) as seen:
        lab["a"].run(["systemctl", *verb, "l4proxy-forwarder"])
        eventually(lambda: supervisor(lab) not in (None, before))
        took = time.monotonic() - begun
        seen.wait_for_more()
    back = last_entered(lab, "ActiveEnter")
    assert begun < last_entered(lab, "InactiveEnter") < back
    assert seen.errors == []
    assert [at for at, ended in seen.served if at < back < ended] != [], "control: no client was served for a while"
    assert took < DRAIN_TIMEOUT, "the restart waited for long-lived connections"
    assert streams.alive() == Streams.COUNT
    assert workers(lab) & old
    streams.close()
    eventually(lambda: not workers(lab) & old)
    journal = ["journalctl", "--unit=l4proxy-forwarder", "--output=cat", "--no-pager", f"--since=@{since:.3f}"]
    log = lab["a"].run(journal).stdout
    assert "listeners adopted" in log
    assert ("workers adopted" if verb == ["restart"] else "workers of the previous supervisor still drain") in log


def test_a_stop_refuses_new_clients_and_waits_for_existing_connections(lab, streams):
    """Control for the restart. Afterwards no process is left."""
    with ThreadPoolExecutor(1) as pool:
        stop = pool.submit(lab["a"].run, ["systemctl", "stop", "l4proxy-forwarder"], timeout=PATIENCE + DRAIN_TIMEOUT)
        eventually(lambda: refused(lab))
        assert streams.alive() == Streams.COUNT
        assert not stop.done()
        streams.close()
        stop.result()
    assert workers(lab) == set()
    lab["a"].run(["systemctl", "start", "l4proxy-forwarder"])
    eventually(lambda: not refused(lab))


def refused(lab):
    try:
        with lab["client"].inside(), socket.create_connection((lab["a"].ipv4, PORTS[0]), PATIENCE):
            return False
    except ConnectionRefusedError:
        return True


def test_rolling_update_breaks_no_connection(lab, play):
    before = failures(lab)
    assert {"b", "b:8080", "b:8081", "c", "d"} <= set(before)
    with clients(lab) as seen:
        run = play("rolling_update", "--extra-vars", json.dumps({"l4proxy_update_tasks": str(UPDATE)}))
        seen.wait_for_more()
    assert run.status == 0, run.output
    assert set(run.changed) == {"b", "c", "d"}, run.output
    assert seen.errors == []
    # No connect to a stopped server was even tried.
    assert failures(lab) == before


def test_a_server_stopped_in_rotation_is_counted_as_failed(lab):
    # Control for the rolling update: clients are moved to another backend, but the failure is counted.
    before = failures(lab)
    with clients(lab):
        lab["b"].run(["systemctl", "stop", "nginx"])
        try:
            eventually(lambda: failures(lab)["b"] > before["b"] and failures(lab)["b:8081"] > before["b:8081"])
        finally:
            lab["b"].run(["systemctl", "start", "nginx"])
