# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which sessions a service logs, in which format; and a slow reader of the log."""

from __future__ import annotations

import json
import os
import re
import shlex
import threading

import pytest

from tests.kernel.forwarder.sessions import Session, refused
from tests.support.forwarding import Forwarder, make_config, make_service
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.usefixtures("session_servers")
LOGS = ["all", "errors", "none"]
PORTS = dict(zip(LOGS, (7950, 7951, 7952)))
DENIED, BACKEND = 7953, 9000


def document(lab, protocol, **options):
    """A service for each value of ``log``, and one for each that denies all clients."""
    deny = [f"{lab['client'].ipv4}/32", f"{lab['client'].ipv6}/128"]
    common = {"backends": ["b"], "protocol": protocol, "idle_timeout": 0.5}
    services = [make_service(lab, log, port, BACKEND, log=log, **common) for log, port in PORTS.items()]
    services += [
        make_service(lab, f"denied-{log}", DENIED + place, BACKEND, log=log, deny=deny, **common)
        for place, log in enumerate(LOGS)
    ]
    return make_config(*services, **options)


def sessions_of_all(lab, forwarder, protocol, family):
    """Open a session of each service and a denied one; wait until all have ended."""
    address = getattr(lab["a"], family)
    for port in PORTS.values():
        Session(lab, protocol, (address, port)).end()
    for place, _log in enumerate(LOGS):
        assert refused(lab, protocol, (address, DENIED + place))
    eventually(lambda: denied(forwarder) == [1] * 3, "they are counted", lambda: f"{denied(forwarder)}")
    eventually(
        lambda: not any(service["sessions"] for service in forwarder.status()["services"]),
        "all are over",
        forwarder.show,
    )


def denied(forwarder):
    """The number of denied clients, by service."""
    services = {service["name"]: service for service in forwarder.status()["services"]}
    return [services[f"denied-{log}"]["refused_denied"] for log in LOGS]


def test_log_selects_all_failed_or_no_sessions(lab, protocol, family):
    """Every session is counted."""
    with Forwarder(lab, document(lab, protocol)) as forwarder:
        sessions_of_all(lab, forwarder, protocol, family)
        eventually(lambda: len(told(forwarder)) >= 3, "what is to be said is said", forwarder.show)
        assert sorted(told(forwarder)) == ["all", "denied-all", "denied-errors"]
        assert [service["connections"] for service in forwarder.status()["services"]][:3] == [1] * 3


def told(forwarder):
    """The services of the lines about clients."""
    events = ("connection", "session", "datagram refused")
    return [line["service"] for line in forwarder.log() if line["event"] in events]


def test_logfmt_has_the_same_fields(lab, protocol, family):
    with Forwarder(lab, document(lab, protocol, log={"format": "logfmt"})) as forwarder:
        sessions_of_all(lab, forwarder, protocol, family)
        event = "connection" if protocol == "tcp" else "session"
        eventually(lambda: f"event={event}" in forwarder.show(), "a session is in the log")
        lines = forwarder.show().splitlines()
    assert [line for line in lines if not re.match(r'event=(\w+|".*?") level=\w+ time=', line)] == []
    line = next(line for line in lines if line.startswith(f"event={event} "))
    fields = dict(word.split("=", 1) for word in shlex.split(line))
    assert (fields["service"], fields["client"], fields["backend"]) == ("all", getattr(lab["client"], family), "b")
    assert int(fields["bytes_to_client"]) > 0


def test_open_sessions_are_logged_at_their_start_and_again_and_again_as_the_newest_config_says(lab, protocol, family):
    address, client = getattr(lab["a"], family), getattr(lab["client"], family)
    ports, line = {"one": PORTS["all"], "two": PORTS["errors"]}, "connection" if protocol == "tcp" else "session"

    def config(logged):
        keys = {"log": "none", "protocol": protocol, "backends": ["b"]}
        loud = {"log_start": True, "log_every": 1}
        return make_config(*(
            make_service(lab, name, port, BACKEND, **keys, **(loud if name == logged else {}))
            for name, port in ports.items()
        ))  # fmt: skip

    def lines(what, service):
        return [one for one in forwarder.log(f"{line} {what}") if one["service"] == service]

    with Forwarder(lab, config("one")) as forwarder:
        opened = [Session(lab, protocol, (address, port)) for port in ports.values()]
        eventually(lambda: len(lines("open", "one")) >= 2, "it is logged again and again", forwarder.show)
        (start,), (first, second) = lines("start", "one"), lines("open", "one")[:2]
        same = {"client": client, "backend": "b", "source": client}
        for one in (start, first, second):
            assert {**one, **same, "client_port": start["client_port"], "listener": start["listener"]} == one
            assert one["time"] - one["duration"] == pytest.approx(start["time"] - start["duration"], abs=0.5)
            assert "ended" not in one
        assert "bytes_to_client" not in start
        assert first["bytes_to_client"] > 0
        assert (int(first["duration"]), int(second["duration"])) == (1, 2)
        forwarder.configure(config("two"))
        assert forwarder.reload().returncode == 0
        before = len(lines("open", "one"))
        eventually(lambda: lines("open", "two"), "the open session of the other service is logged", forwarder.show)
        opened.append(Session(lab, protocol, (address, ports["two"])))
        eventually(lambda: len(lines("start", "two")) == 1, "and the start of a new one", forwarder.show)
        assert (len(lines("open", "one")), len(lines("start", "one"))) == (before, 1)
        assert forwarder.status()["last_reload"]["in_place"]
        assert forwarder.log(line) == [], "log is none"
        for session in opened:
            session.end()


@pytest.mark.ipv4_only
def test_a_stalled_log_reader_blocks_nothing_and_lost_lines_are_counted(lab, protocol):
    """The log is a pipe that is not read: sessions continue, and later a line has the number of lost lines."""
    read, write = os.pipe()
    address, found = (lab["a"].ipv4, PORTS["all"]), []

    def listen():
        with os.fdopen(read, "rb") as stream:
            found.extend(json.loads(line) for line in stream)

    reader = threading.Thread(target=listen, daemon=True)
    with Forwarder(lab, document(lab, protocol), stdout=write) as forwarder:
        os.close(write)

        def dropped():
            for _session in range(200):
                Session(lab, protocol, address).end()
            return forwarder.status()["totals"]["log_dropped"]

        eventually(dropped, "lines are dropped, and nobody has to wait", patience=60)
        reader.start()
        eventually(lambda: dropped() and said(found), "it is said", patience=60)
    reader.join(PATIENCE)
    assert sum(line["count"] for line in said(found)) > 0


def said(lines):
    return [line for line in lines if line["event"] == "log lines dropped"]
