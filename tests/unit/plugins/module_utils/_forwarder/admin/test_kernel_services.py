# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services that the kernel forwards, in the status and in all that is made from it."""

from __future__ import annotations

import dataclasses
import json
import os
import time

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import (
    cli_views,
    http_views,
    kernel_services,
    metrics,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Listener, Service

from ..snapshots import Forwarder

B = Backend("b", 8080, ipv4="198.18.0.21", ipv6="2001:db8::21")
C = Backend("c", 8080, ipv4="198.18.0.22")
LISTEN = (Listener("198.18.0.11", 80), Listener("2001:db8::11", 80))
WEB = Service("web", LISTEN, (B, C), datapath="kernel")
NUMBERS = {"connections": 70, "open": 4, "bytes_in": 100, "bytes_out": 900, "packets_in": 5, "packets_out": 6}
COUNTED = {
    "refused": {"denied": 1, "limited": 2, "no_backend": 3, "flood": 4},
    "backends": {"b": NUMBERS, "c": dict.fromkeys(NUMBERS, 0)},
}


@pytest.fixture
def write(tmp_path):
    """A function that writes the keeper's file, of some age, and returns the numbers that are read."""

    def write(services, age=3.0, **more):
        path = tmp_path / "datapath.json"
        path.write_text(json.dumps({"schema": 1, "time": time.time() - age, "services": services, **more}))
        return kernel_services.read(str(path))

    return write


@pytest.fixture
def status(write):
    """A function that returns the status with these numbers; the forwarder has connections from before."""
    made = []

    def status(numbers, service=WEB):
        made.append(forwarder := Forwarder(Config(proxy_id=1, services=(service,))))
        for kind in ("service", "target"):
            forwarder.count(kind, "connections", 2)
        forwarder.count("service", "sessions", 1)
        forwarder.count("target", "active", 1)
        forwarder.count("service", "refused_denied", 5)
        return forwarder.status(kernel=numbers)

    yield status
    for forwarder in made:
        forwarder.close()


def test_what_the_kernel_and_the_forwarder_have_is_added_up(write, status):
    document = status(write({"web": COUNTED}))
    (web,) = document["services"]
    assert (web["datapath"], web["kernel_numbers_age"]) == ("kernel", 3.0)
    assert (web["sessions"], web["connections"], web["refused_denied"], web["refused_flood"]) == (5, 72, 6, 4)
    b = web["backends"][0]
    assert (b["active"], b["connections"], b["bytes_to_backend"], b["bytes_to_client"]) == (5, 72, 100, 900)
    assert (b["datagrams_to_backend"], b["families"]["ipv4"]["active"]) == (0, 1), "packets of TCP are no datagrams"
    text = metrics.render(document)
    for line in (
        'l4proxy_sessions{service="web"} 5',
        'l4proxy_refused_total{service="web",cause="flood"} 4',
        'l4proxy_backend_connections{service="web",backend="b"} 5',
        'l4proxy_service_in_kernel{service="web"} 1',
        'l4proxy_kernel_numbers_age_seconds{service="web"} 3.0',
    ):
        assert f"{line}\n" in text
    shown = "the kernel forwards it; the keeper counted its connections 3 s ago"
    assert f"5 sessions, 72 accepted, 15 refused\n  {shown}\n" in cli_views.table(document)
    assert f"<p>{shown}</p>" in http_views.render(document)


def test_packets_of_udp_are_datagrams(write, status):
    (web,) = status(write({"web": COUNTED}), dataclasses.replace(WEB, protocol="udp"))["services"]
    assert (web["backends"][0]["datagrams_to_backend"], web["backends"][0]["datagrams_to_client"]) == (5, 6)


NEVER, LONG_AGO = "the keeper has published none", "the keeper published the last ones 30 s ago"


@pytest.mark.parametrize(("services", "age", "reason"), [
    (None, 0, NEVER),
    ({}, 3, "the keeper counted its connections 3 s ago"),
    ({"web": COUNTED}, 30, LONG_AGO),
    ({"web": {**COUNTED, "backends": {"b": {"open": "4"}}}}, 3, "counted"),
    ({"web": 7}, 3, "counted"),
    ([], 3, "counted"),
])  # fmt: skip
def test_numbers_that_are_not_known_are_shown_as_such_and_never_as_zero(write, status, services, age, reason):
    numbers = kernel_services.NO_NUMBERS if services is None else write(services, age)
    document = status(numbers)
    (web,) = document["services"]
    assert [web["sessions"], web["connections"], *(one["active"] for one in web["backends"])] == [None] * 4
    assert (web["refused_denied"] is None) == (web["refused_flood"] is None)
    text = cli_views.table(document)
    assert reason in text
    assert "- sessions, - accepted" in text
    cli_views.table(document, cli_views._rates(document, document, 1.0))
    http_views.render(document)
    assert "l4proxy_sessions{" not in metrics.render(document)
    assert "None" not in metrics.render(document)


def test_a_service_of_the_forwarder_has_no_numbers_of_the_kernel(write, status):
    (web,) = status(write({"web": COUNTED}), dataclasses.replace(WEB, datapath=None))["services"]
    assert (web["datapath"], web["kernel_numbers_age"], web["sessions"]) == ("forwarder", None, 1)
    assert "refused_flood" not in web


@pytest.mark.parametrize("make", [
    lambda path: path.symlink_to("/etc/passwd"), os.mkfifo, lambda path: path.mkdir(),
    lambda path: path.write_text("{"), lambda path: path.write_text("[]"), lambda path: None,
    lambda path: path.write_text('{"schema": 1, "time": "now", "services": {}}'),
])  # fmt: skip
def test_what_is_no_valid_file_is_neither_followed_nor_waited_for(tmp_path, make):
    make(tmp_path / "datapath.json")
    assert kernel_services.read(str(tmp_path / "datapath.json")) == kernel_services.NO_NUMBERS


V4 = "-f ipv4 -p tcp --orig-dst 198.18.0.11 --orig-port-dst 80"
V6 = "-f ipv6 -p tcp --orig-dst 2001:db8::11 --orig-port-dst 80"


@pytest.mark.parametrize(("backend", "client", "options"), [
    (None, None, [V4, V6]),
    ("c", None, [f"{V4} --reply-src 198.18.0.22"]),
    ("b", "203.0.113.0/24", [f"{V4} --orig-src 203.0.113.0/24 --reply-src 198.18.0.21"]),
    (None, "2001:db8:9::7", [f"{V6} --orig-src 2001:db8:9::7"]),
    ("d", None, []),
])  # fmt: skip
def test_conntrack_selects_the_same_connections(backend, client, options):
    assert kernel_services.conntrack(WEB, backend, client) == options
