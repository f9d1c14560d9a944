# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client of the admin socket: answers, refusals, and sockets without a forwarder."""

from __future__ import annotations

import copy
import json
import socket
import threading

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import client

DOCUMENT = {
    "services": [
        {"name": "web", "backends": [{"name": "b", "active": 2, "state": "up"}, {"name": "c", "active": 0}]},
        {"name": "mail", "backends": [{"name": "b", "active": 1, "state": "down"}]},
    ]
}


@pytest.fixture
def forwarder(tmp_path):
    """A function that makes the socket answer connections with these bytes in turn; it returns (path, requests)."""
    path, threads = str(tmp_path / "admin.sock"), []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def answering(*answers):
        requests = []

        def serve():
            for answer in answers:
                with listener.accept()[0] as sock:
                    requests.append(json.loads(sock.makefile().readline()))
                    sock.sendall(answer)

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[-1].start()
        return path, requests

    yield answering
    for thread in threads:
        thread.join(5)
    listener.close()


def status(**changes):
    """A status answer with these values for backend b of both services."""
    document = copy.deepcopy(DOCUMENT)
    for service in document["services"]:
        service["backends"][0].update(changes)
    return json.dumps({"ok": True, "status": document}).encode() + b"\n"


def test_arguments_that_are_none_are_not_sent(forwarder):
    path, requests = forwarder(b'{"ok": true, "services": ["web"]}\n')
    assert client.ask(path, "drain", backend="b", service=None) == {"ok": True, "services": ["web"]}
    assert requests == [{"op": "drain", "backend": "b"}]


@pytest.mark.parametrize(("answer", "sentence"), [
    (b'{"ok": false, "error": "there is no backend x"}\n', "there is no backend x"),
    (b"", "the forwarder closed the connection without a complete answer"),
    (b'{"ok": tr', "the forwarder closed the connection without a complete answer"),
])  # fmt: skip
def test_a_refusal_or_an_incomplete_answer_is_an_error(forwarder, answer, sentence):
    path, _requests = forwarder(answer)
    with pytest.raises(client.AdminError, match=sentence):
        client.ask(path, "status")


def test_a_socket_without_a_forwarder_is_an_error(tmp_path):
    left_over = tmp_path / "left"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(left_over))
    for path in (tmp_path / "none", left_over):
        with pytest.raises(client.AdminError, match=f"no forwarder listens on {path}; start l4proxy-forwarder.service"):
            client.ask(str(path), "status")


@pytest.mark.parametrize(("service", "found"), [(None, {"web": 2, "mail": 1}), ("mail", {"mail": 1})])
def test_a_backend_is_found_in_its_services(service, found):
    assert {name: one["active"] for name, one in client.backends(DOCUMENT, "b", service).items()} == found


def in_kernel(age, *actives, op="status"):
    """Status answers of a service that the kernel forwards; the keeper has counted its connections ``age`` s ago."""
    return [
        status(active=active).replace(
            b'"name": "web"', f'"datapath": "kernel", "kernel_numbers_age": {age}, "name": "web"'.encode()
        )
        for active in actives
    ]


def test_a_backend_of_the_kernel_is_empty_when_it_is_counted_as_such_after_the_wait_began(forwarder, monkeypatch):
    monkeypatch.setattr(client, "POLL", 0.0)
    clock = iter(range(100))
    monkeypatch.setattr(client.time, "monotonic", lambda: float(next(clock)))
    path, requests = forwarder(*in_kernel(2.0, 0, 0, 0))
    assert client.wait_until_empty(path, "b", "web", 60) == 0
    assert len(requests) == 3, "the first two have numbers from before"


@pytest.mark.parametrize("age", ["null", 40.0])
def test_a_backend_whose_connections_nobody_counts_is_not_empty(forwarder, age):
    path, _requests = forwarder(*in_kernel(age, 0))
    with pytest.raises(client.AdminError, match="the connections of backend b in service web are not known"):
        client.wait_until_empty(path, "b", "web", 0)


def test_connections_that_the_kernel_has_are_not_ended_but_pointed_to(forwarder):
    killed = b'{"ok": true, "ended": 1, "in_kernel": {"web": ["OPTIONS"]}}\n'
    path, _requests = forwarder(killed, *in_kernel(1.0, 3))
    with pytest.raises(client.AdminError, match="service web; end them with: conntrack -D OPTIONS"):
        client.end_connections(path, "b", "web")


@pytest.mark.parametrize(("service", "where"), [(None, "any service"), ("mail", "service mail")])
def test_an_unknown_backend_is_an_error(service, where):
    with pytest.raises(client.AdminError, match=f"there is no backend x in {where} of this forwarder"):
        client.backends(DOCUMENT, "x", service)


def test_a_number_of_connections_in_words():
    assert [client.connections(number) for number in range(3)] == ["0 connections", "1 connection", "2 connections"]


def test_the_wait_for_an_empty_backend_ends_without_connections_or_after_the_timeout(forwarder, monkeypatch):
    monkeypatch.setattr(client, "POLL", 0)
    path, requests = forwarder(status(active=2), status(active=1), status(active=0))
    assert client.wait_until_empty(path, "b", None, 60) == 0
    assert len(requests) == 3
    forwarder(status(active=2))
    assert client.wait_until_empty(path, "b", None, 0) == 4, "of both services"


@pytest.mark.parametrize(("state", "wrong"), [("up", ""), ("unknown", ""), ("down", "web: down; mail: down")])
def test_the_wait_for_an_up_backend_returns_the_services_where_it_is_not(forwarder, state, wrong):
    path, _requests = forwarder(status(state=state))
    assert client.wait_until_up(path, "b", None, 0) == wrong
