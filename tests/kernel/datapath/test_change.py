# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A live service changes its datapath, in the order of the role: table, forwarder, table."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace

import pytest

from tests.kernel.datapath.support import BACKEND, PORT, Client
from tests.kernel.forwarder.sessions import each_once
from tests.support.forwarding import Forwarder, make_config, make_service
from tests.support.waiting import eventually

HOSTS = ["client", "router", "a", "b", "c", "d"]
OPEN = 20  # sessions that are open during the change
PAUSE = 0.003  # seconds between two sessions: more of them are a flood, which the table bounds


class Load:
    """One new session after another, until it is stopped."""

    def __init__(self, client: Client):
        self.served, self.lost = 0, []
        self._client = client
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stopping.is_set():
            try:
                self._client.session().end()
            except Exception as error:  # noqa: BLE001
                self.lost.append((time.monotonic(), repr(error)))
            self.served += 1
            time.sleep(PAUSE)

    def goes_on(self) -> None:
        """Wait until some more sessions have been served."""
        before = self.served
        eventually(lambda: self.served > before + 20, "new sessions", lambda: str(self.lost))

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


@pytest.fixture
def load(lab, protocol, family):
    load = Load(Client(lab, protocol, family))
    yield load
    load.stop()


def take_over(proxy, services):
    """Serve new sessions, and those of UDP that had none of the backends as their end until now."""
    proxy.serve(*services, states={})
    for one in services:
        ends = ["-f", one.family, "--orig-dst", one.address, "--reply-src", one.address]
        proxy.host.run(["conntrack", "-D", "-p", "udp", *ends], check=False)


@contextlib.contextmanager
def keeping(forwarder, serve):
    """Do what the keeper does when the forwarder mentions the service: ``serve()``."""

    def keep():
        eventually((forwarder.directory / "backends.json").exists, "states are published")
        serve()

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    yield
    thread.join()


def document(lab, protocol, datapath=None):
    service = make_service(lab, "web", PORT, BACKEND, protocol=protocol)
    a = lab["a"]
    service["listen"] = [{"address": address, "port": PORT} for address in (a.ipv4, a.ipv6)]
    return make_config(service | ({"datapath": datapath} if datapath else {}), workers=2)


@each_once
def test_no_session_is_lost_or_refused_in_either_direction(lab, proxy, servers, protocol, family, request):
    client = Client(lab, protocol, family)
    services = [proxy.service(protocol, each) for each in ("ipv4", "ipv6")]
    with Forwarder(lab, document(lab, protocol)) as forwarder:
        load = request.getfixturevalue("load")
        ours = [client.session() for _number in range(OPEN)]
        load.goes_on()
        proxy.serve(*services)
        load.goes_on()
        assert sum(proxy.connections().values()) == 0, "while the forwarder has a socket, it gets the sessions"
        forwarder.configure(document(lab, protocol, "kernel"))
        with keeping(forwarder, lambda: take_over(proxy, services)):
            assert forwarder.reload().returncode == 0
        load.goes_on()
        eventually(lambda: sum(proxy.connections().values()) > 0, "the kernel forwards")
        assert forwarder.status()["services"][0]["datapath"] == "kernel"
        theirs = [client.session() for _number in range(OPEN)]
        for session in (*(ours if protocol == "tcp" else ()), *theirs):
            session.go_on()
            assert not session.is_reset()
        forwarder.configure(document(lab, protocol))
        assert forwarder.reload().returncode == 0
        proxy.serve(*(replace(service, retiring=True) for service in services))
        load.goes_on()
        for session in (*(ours if protocol == "tcp" else ()), *theirs):
            session.go_on()
            assert not session.is_reset()
            session.end()
        load.stop()
    assert load.lost == []
