# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services that the kernel forwards, as the forwarder sees them: no sockets, states of backends, a changed datapath."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time

import pytest

from tests.kernel.forwarder.test_in_place import DATAGRAMS, OLD, WEB, Sessions, change, document
from tests.support import tcp, udp
from tests.support.forwarding import BACKENDS, Forwarder, build_archive
from tests.support.waiting import FACTOR, eventually


@pytest.fixture
def forwarder(lab):
    with Forwarder(lab, document(lab)) as forwarder:
        yield forwarder


def in_kernel(lab, config, *names):
    """The same config, but the kernel forwards these services."""
    a, copied = lab["a"], json.loads(json.dumps(config))
    for service in copied["services"]:
        listen = {
            address: [{**one, "address": address} for one in service["listen"][:1]] for address in (a.ipv4, a.ipv6)
        }
        service["listen"] = [*listen[a.ipv4], *listen[a.ipv6]]
        if service["name"] in names:
            service.update(datapath="kernel", balance="round_robin")
            service.pop("idle_timeout")
    return copied


def published(forwarder):
    return json.loads((forwarder.directory / "backends.json").read_text(encoding="utf-8"))["services"]


def bound(lab, port, protocol):
    """Whether a has a socket on its own address and this port, other than those of connections."""
    flags = "-Htln" if protocol == "tcp" else "-Huan"
    return lab["a"].run(["ss", flags, f"sport = :{port}"]).stdout.strip() != ""


@pytest.mark.ipv4_only
@pytest.mark.parametrize("way", ["in place", "new processes"])
def test_a_service_that_the_kernel_forwards_gives_up_its_listeners_and_keeps_its_connections(lab, tmp_path, way):
    """Back and forth. A UDP session ends at once: the kernel forwards the client's next datagram."""
    before = in_kernel(lab, document(lab))
    before["services"][1]["drain_timeout"] = 0.3  # it is not of a service that stays
    after = in_kernel(lab, before, "old", "datagrams")
    server, archive = tcp.answering(lab, BACKENDS, 9001), build_archive(tmp_path)
    with server, Forwarder(lab, before, archive=archive) as forwarder, contextlib.ExitStack() as stack:
        stack.enter_context(udp.serving(lab, 9000, ["b"]))
        held = Sessions(lab, stack, True)
        for step in range(2):
            if way == "new processes":
                forwarder.change_archive()
            result = change(forwarder, after)
            assert (result["ok"], result["in_place"]) == (True, way == "in place"), forwarder.show()
            named = {"in_kernel": ["old", "datagrams"]}
            eventually(
                lambda named=named: forwarder.log("serving")[-1].items() >= named.items(),
                "it is logged",
                forwarder.show,
            )
            eventually(lambda: not bound(lab, OLD, "tcp"), "the listeners are closed", forwarder.show)
            eventually(lambda: not bound(lab, DATAGRAMS, "udp"), "the sockets of UDP are closed", forwarder.show)
            assert tcp.refused(lab, OLD), "without the kernel datapath nobody serves it"
            assert not tcp.refused(lab, WEB)
            eventually(
                lambda: list(published(forwarder)) == ["old", "datagrams"], "states are published", forwarder.show
            )
            assert published(forwarder)["old"] == {"b": "up"}
            time.sleep(0.6)
            held.assert_tcp_open()
            ended = [line["ended"] for line in forwarder.log("session")]
            assert ended == (["the kernel forwards the service"] * 2 if way == "in place" and not step else ended)
            result = change(forwarder, before)
            assert (result["ok"], result["in_place"]) == (True, True)
            assert bound(lab, OLD, "tcp")
            eventually(lambda: published(forwarder) == {}, "no states", forwarder.show)
            held.assert_tcp_open()
    assert not forwarder.log("defect")
    assert not forwarder.log("sessions of a removal ended")


@pytest.mark.ipv4_only
def test_what_an_operator_says_of_a_kernel_service_is_published_at_once_also_without_a_checker(lab, forwarder):
    forwarder.configure(in_kernel(lab, document(lab), "old"))
    assert forwarder.reload().returncode == 0
    eventually(lambda: len(forwarder.children("l4-checker")) == 1, "the new checker runs", forwarder.show)
    for network, service in (("2001:db8:7::/126", "old"), ("192.0.2.7", None)):
        assert forwarder.ask("deny", network=network, service=service)["ok"]
    path = forwarder.directory / "denied.json"
    eventually(lambda: len(json.loads(path.read_text())["lists"]) == 2, "bans are published", forwarder.show)
    found = {one["service"]: one["ranges"] for one in json.loads(path.read_text())["lists"]}
    assert found == {"": [["192.0.2.7", "192.0.2.7", 0]], "old": [["2001:db8:7::", "2001:db8:7::3", 0]]}
    for checker in (True, False):
        if not checker:
            (pid,) = forwarder.children("l4-checker")
            os.kill(pid, signal.SIGSTOP)
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: not forwarder.children("l4-checker"), "it has ended", forwarder.show)
        for op, word in (("drain", "out"), ("ready", "up")):
            begun = time.monotonic()
            forwarder.ask(op, backend="b", service="old")
            eventually(lambda word=word: published(forwarder)["old"] == {"b": word}, f"b is {word}", forwarder.show)
            assert time.monotonic() - begun < FACTOR
