# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Relaying TCP: backends see the client's address, and every byte, close and reset arrives."""

from __future__ import annotations

import hashlib
import os
import random
import select
import signal
import socket
import threading
import time
from collections import Counter

import pytest

from tests.support import tcp
from tests.support.forwarding import make_config, web_and_raw
from tests.support.waiting import PATIENCE, eventually, in_threads

WEB, RAW = 80, 7000  # ports on a: HTTP of b, c and d; the test's listener on b
MIB = 1 << 20


def document(lab):
    return make_config(*web_and_raw(lab, WEB, RAW))


def test_backends_take_turns_and_log_the_clients_address(lab, servers, forwarder, new_lines, family):
    address, client = getattr(lab["a"], family), getattr(lab["client"], family)
    seen = {name: len(server.requests()) for name, server in servers.items()}
    bodies = Counter(tcp.get(lab, address, WEB) for _request in range(9))
    assert bodies == {b"b\n": 3, b"c\n": 3, b"d\n": 3}
    for name, server in servers.items():
        lines = server.wait_requests(seen[name] + 3)[seen[name] :]
        assert [line.split()[0] for line in lines] == [client] * 3
    for line in new_lines(9):
        assert (line["service"], line["client"], line["source"], line["attempts"]) == ("web", client, client, 1)
        assert (line["ended"], line["bytes_to_backend"]) == ("closed", len(b"GET / HTTP/1.0\r\n\r\n"))
        assert line["bytes_to_client"] > 100


@pytest.mark.parametrize("first", ["client", "backend"])
def test_after_a_half_close_the_other_side_can_go_on_sending(lab, forwarder, listener, new_lines, family, first):
    with tcp.connection(lab, listener, RAW) as (client, server):
        closing, sending = (client, server) if first == "client" else (server, client)
        closing.sendall(b"that is all from me")
        closing.shutdown(socket.SHUT_WR)
        assert tcp.receive_all(sending) == b"that is all from me"
        data = random.Random(1).randbytes(3 * MIB)
        sender = threading.Thread(target=lambda: (sending.sendall(data), sending.close()))
        sender.start()
        assert tcp.receive_all(closing) == data
        sender.join()
    line = new_lines(1)[0]
    assert line["ended"] == "closed"
    sizes = (19, len(data)) if first == "client" else (len(data), 19)
    assert (line["bytes_to_backend"] - 1, line["bytes_to_client"]) == sizes, "and the byte of tcp.pair"


@pytest.mark.parametrize("who", ["client", "backend"])
def test_a_reset_reaches_the_other_side(lab, forwarder, listener, new_lines, family, who):
    client, server = tcp.pair(lab, listener, RAW)
    resetting, other = (client, server) if who == "client" else (server, client)
    tcp.reset(resetting)
    with other, pytest.raises(ConnectionResetError):
        other.recv(1)
    assert new_lines(1)[0]["ended"] == f"{who} reset"


def test_a_greeting_of_the_server_arrives_at_once(lab, forwarder, listener, new_lines, family):
    client = tcp.connect(lab, getattr(lab["a"], family), RAW)
    with client, tcp.accept(listener) as server:
        begun = time.monotonic()
        server.sendall(b"220 hello\r\n")
        assert client.recv(100) == b"220 hello\r\n"
        assert time.monotonic() - begun < 5
    new_lines(1)  # so that the next test does not get this line


def test_an_early_answer_reaches_a_client_whose_upload_is_reset(lab, forwarder, listener, new_lines, family):
    """A server that closes with unread input sends RST; its earlier answer must not be lost."""
    client, server = tcp.pair(lab, listener, RAW)
    with client:
        client.sendall(b"x" * 1000)
        eventually(lambda: len(server.recv(2000, socket.MSG_PEEK)) == 1000, "the upload is queued")
        server.sendall(b"413 too large")
        server.close()
        assert client.recv(100) == b"413 too large"
        with pytest.raises(ConnectionResetError):
            client.recv(100)
    assert new_lines(1)[0]["ended"] == "backend reset"


@pytest.mark.parametrize("upload", [True, False])
def test_urgent_data_arrives_as_it_does_without_a_proxy(lab, forwarder, listener, new_lines, family, upload):
    client, server = tcp.pair(lab, listener, RAW)
    sender, receiver = (client, server) if upload else (server, client)
    with client, server:
        sender.sendall(b"before")
        sender.send(b"!", socket.MSG_OOB)
        sender.sendall(b"after")
        assert exactly(receiver, 6) == b"before"
        assert select.select([], [], [receiver], PATIENCE)[2] == [receiver], "it is still urgent"
        sender.shutdown(socket.SHUT_WR)
        assert tcp.receive_all(receiver) == b"after"
    line = new_lines(1)[0]
    assert (line["bytes_to_backend"], line["bytes_to_client"]) == ((13, 0) if upload else (1, 12))


def test_urgent_data_that_comes_before_the_backend_is_connected_stays_urgent(lab, forwarder, listener, family):
    (worker,) = forwarder.workers()
    os.kill(worker, signal.SIGSTOP)
    try:
        client = tcp.connect(lab, getattr(lab["a"], family), RAW)
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b"after it")
    finally:
        os.kill(worker, signal.SIGCONT)
    with client, tcp.accept(listener) as server:
        assert exactly(server, 8) == b"after it", "the byte is beside the stream"


def exactly(sock, count):
    data = b""
    while len(data) < count and (part := sock.recv(count - len(data))):
        data += part
    return data


def test_200_mib_each_way_over_50_connections_arrive_intact(lab, forwarder, listener, new_lines, family):
    size, count = 4 * MIB, 50
    upload, download = random.Random(3).randbytes(size), random.Random(4).randbytes(size)
    wanted = hashlib.sha256(upload).digest(), hashlib.sha256(download).digest()
    heard = []

    def serve(_index):
        with tcp.accept(listener) as server:
            heard.append(exchange(server, download))

    def talk(_index):
        with tcp.connect(lab, getattr(lab["a"], family), RAW) as client:
            return exchange(client, upload)

    serving = threading.Thread(target=in_threads, args=(serve, count))
    serving.start()
    assert in_threads(talk, count) == [wanted[1]] * count
    serving.join()
    assert heard == [wanted[0]] * count
    assert {(line["bytes_to_backend"], line["bytes_to_client"]) for line in new_lines(count)} == {(size, size)}


def exchange(sock, data):
    """Send ``data`` while reading to the end; return the SHA-256 of what was read."""
    sender = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
    sender.start()
    digest = hashlib.sha256()
    while part := sock.recv(1 << 18):
        digest.update(part)
    sender.join()
    return digest.digest()
