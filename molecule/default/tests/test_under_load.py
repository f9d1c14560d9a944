# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients that never stop asking, while the forwarder is killed and while backends are updated."""

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

PORTS = (80, 81, 82)
CLIENTS = 6
PATIENCE = 30.0
DRAIN_TIMEOUT = 30.0  # the role's default of forwarder_drain_timeout
UPDATE = Path(__file__).with_name("update.yml")
FAILURES = ("failed_refused", "failed_unreachable", "failed_timeout", "failed_reset", "failed_local")


class Clients:
    """What clients saw: ``served`` as (begun, ended), ``errors`` as (begun, what went wrong), in monotonic seconds."""

    def __init__(self, lab):
        self.served, self.errors = [], []
        self._client, self._over, self._lock = lab["client"], threading.Event(), threading.Lock()
        self._targets = itertools.cycle(
            [(address, port) for port in PORTS for address in (lab["a"].ipv4, lab["a"].ipv6)]
        )

    def go_on(self):
        """Ask again and again, until stopped. A connection that has to wait is no error."""
        with self._client.inside():
            while not self._over.is_set():
                with self._lock:
                    target = next(self._targets)
                begun = time.monotonic()
                try:
                    answered = exchange(target)
                except OSError as error:
                    answered = f"{target}: {type(error).__name__} {error}"
                with self._lock:
                    if answered is None:
                        self.served.append((begun, time.monotonic()))
                    else:
                        self.errors.append((begun, answered))

    def stop(self):
        self._over.set()

    def wait_for_more(self, number=20):
        """Until that many more have been served."""
        wanted = len(self.served) + number
        wait_for(lambda: len(self.served) >= wanted)


def exchange(target):
    """One request; None when it was answered, else what came instead."""
    with socket.create_connection(target, timeout=PATIENCE) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with sock.makefile("rb") as stream:
            answer = stream.read()
    return None if b" 200 " in answer[:15] else f"{target}: answered {answer[:40]!r}"


@contextmanager
def clients(lab):
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = Clients(lab)
        tasks = [pool.submit(found.go_on) for _client in range(CLIENTS)]
        try:
            found.wait_for_more()
            yield found
        finally:
            found.stop()
        for task in tasks:
            task.result()


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
    return answer


def supervisor(lab):
    done = lab["a"].run(["cat", "/run/l4proxy/forwarder.json"], check=False)
    return json.loads(done.stdout)["pid"] if done.stdout else None


def failures(lab):
    """How many connections of clients the forwarder could not make to a backend, by the backend's name."""
    services = json.loads(lab["a"].run(["l4proxy", "status", "--json"]).stdout)["services"]
    found = {}
    for backend in (backend for service in services for backend in service["backends"]):
        found[backend["name"]] = found.get(backend["name"], 0) + sum(backend[failure] for failure in FAILURES)
    return found


def moment(lab, name):
    """When the unit last changed its state, in seconds of the monotonic clock, which is the machine's."""
    show = ["systemctl", "show", f"--property={name}TimestampMonotonic", "--value", "l4proxy-forwarder"]
    return int(lab["a"].run(show).stdout) / 1e6


class Streams:
    """Connections that stay, half of them over IPv6, each asked again and again by its client."""

    COUNT = 10

    def __init__(self, lab):
        addresses = (lab["a"].ipv4, lab["a"].ipv6)
        with lab["client"].inside():
            self._socks = [
                socket.create_connection((addresses[number % 2], PORTS[0]), PATIENCE) for number in range(self.COUNT)
            ]

    def alive(self):
        """How many of them carry a request and its answer."""
        return sum(self._asked(sock) for sock in self._socks)

    def _asked(self, sock):
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
    """The forwarder's worker processes, old ones included."""
    return set(lab["a"].run(["pgrep", "l4-worker"], check=False).stdout.split())


GONE = {
    "killed": ["kill", "--kill-whom=main", "--signal=KILL"],
    "restarted": ["restart"],
}


@pytest.mark.parametrize("verb", GONE.values(), ids=GONE)
def test_nobody_is_refused_or_cut_while_the_supervisor_is_replaced(lab, streams, verb):
    """Its workers go on with what they have; whoever comes from then on waits for the next one."""
    before, old, begun, since = supervisor(lab), workers(lab), time.monotonic(), time.time()
    with clients(lab) as seen:
        lab["a"].run(["systemctl", *verb, "l4proxy-forwarder"])
        wait_for(lambda: supervisor(lab) not in (None, before))
        took = time.monotonic() - begun
        seen.wait_for_more()
    back = moment(lab, "ActiveEnter")
    assert begun < moment(lab, "InactiveEnter") < back
    assert seen.errors == []
    assert [at for at, ended in seen.served if at < back < ended] != [], "the control: nobody served for a while"
    assert took < DRAIN_TIMEOUT, "nor does it wait for the connections that stay"
    assert streams.alive() == Streams.COUNT
    assert workers(lab) & old
    streams.close()
    wait_for(lambda: not workers(lab) & old)
    journal = ["journalctl", "--unit=l4proxy-forwarder", "--output=cat", "--no-pager", f"--since=@{since:.3f}"]
    log = lab["a"].run(journal).stdout
    assert "listeners found" in log
    assert "workers of before still drain" in log, "the next one sees to it that they end"


def test_a_stop_refuses_who_comes_and_waits_for_who_is_there(lab, streams):
    """The control of a restart; and when it is done no process is left."""
    with ThreadPoolExecutor(1) as pool:
        stop = pool.submit(lab["a"].run, ["systemctl", "stop", "l4proxy-forwarder"], timeout=PATIENCE + DRAIN_TIMEOUT)
        wait_for(lambda: refused(lab))
        assert streams.alive() == Streams.COUNT
        assert not stop.done()
        streams.close()
        stop.result()
    assert workers(lab) == set()
    lab["a"].run(["systemctl", "start", "l4proxy-forwarder"])
    wait_for(lambda: not refused(lab))


def refused(lab):
    try:
        with lab["client"].inside(), socket.create_connection((lab["a"].ipv4, PORTS[0]), PATIENCE):
            return False
    except ConnectionRefusedError:
        return True


def test_backends_are_updated_one_after_the_other_and_no_client_notices(lab, play):
    before = failures(lab)
    assert {"b", "b:8080", "b:8081", "c", "d"} <= set(before)
    with clients(lab) as seen:
        run = play("rolling_update", "--extra-vars", json.dumps({"l4proxy_update_tasks": str(UPDATE)}))
        seen.wait_for_more()
    assert run.status == 0, run.output
    assert set(run.changed) == {"b", "c", "d"}, run.output
    assert seen.errors == []
    # Nobody was even sent to a server that was down.
    assert failures(lab) == before


def test_a_server_that_stops_in_rotation_is_noticed(lab):
    # The control of the one above: such a connection is made to another backend, but counted.
    before = failures(lab)
    with clients(lab):
        lab["b"].run(["systemctl", "stop", "nginx"])
        try:
            wait_for(lambda: failures(lab)["b"] > before["b"] and failures(lab)["b:8081"] > before["b:8081"])
        finally:
            lab["b"].run(["systemctl", "start", "nginx"])
