# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The doctor on a proxy with a running forwarder, whose config is checked too."""

from __future__ import annotations

import json
import signal
import socket

import pytest

from tests.support.forwarding import Forwarder, make_config, make_service
from tests.support.routing import PORT
from tests.support.waiting import eventually


@pytest.fixture
def running(clinic):
    service = make_service(clinic.lab, "web", 80, PORT, backends=("b",))
    with Forwarder(clinic.lab, make_config(service)) as forwarder:
        yield forwarder


def paths(forwarder) -> dict[str, str]:
    return {"config": str(forwarder.config), "runtime": str(forwarder.directory / "forwarder.json")}


def test_there_are_no_findings_while_the_forwarder_runs(clinic, running):
    assert clinic.complaints("a", **paths(running)) == []


@pytest.mark.parametrize("address", ["0.0.0.0", "198.18.0.11", "2001:db8::11"])
@pytest.mark.parametrize(("ports", "said"), [("8000-8010", ""), ("40000-40010", "port 40000-40010 of every")])
def test_ranges_of_ports_are_checked_against_ephemeral_ports(clinic, running, address, ports, said):
    ranged = make_service(clinic.lab, "range", 80, ports, backends=("b",))
    ranged["listen"] = [{"address": address, "port": ports}]
    running.configure(make_config(ranged))
    running.reload()
    found = clinic.complaints("a", **paths(running))
    wanted = ["port_range"] if said and address == "0.0.0.0" else []
    assert [finding.id for finding in found] == wanted
    assert all(said in finding.what for finding in found)


def test_a_state_that_cannot_be_saved_is_reported(clinic, tmp_path):
    service = make_service(clinic.lab, "web", 80, PORT, backends=("b",))
    directory = tmp_path / "state"
    with Forwarder(clinic.lab, make_config(service), environment={"STATE_DIRECTORY": str(directory)}) as forwarder:
        eventually(lambda: [finding.id for finding in clinic.complaints("a", **paths(forwarder))] == ["state_saved"])
        directory.mkdir()
        assert forwarder.ask("drain", backend="b") == {"ok": True, "changed": True, "services": ["web"]}
        assert clinic.complaints("a", **paths(forwarder)) == []


def test_an_ended_forwarder_is_reported(clinic, running):
    running.stop()
    assert [finding.id for finding in clinic.complaints("a", **paths(running))] == ["forwarder"]


def test_a_stopped_forwarder_is_reported(clinic, running):
    running.process.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: [finding.id for finding in clinic.complaints("a", **paths(running))] == ["forwarder"])
    finally:
        running.process.send_signal(signal.SIGCONT)
    eventually(lambda: clinic.complaints("a", **paths(running)) == [])


def test_a_missing_listener_is_reported(clinic, running):
    more = make_service(clinic.lab, "more", 81, PORT, backends=("b",))
    running.configure(make_config(more))
    assert {finding.id for finding in clinic.complaints("a", **paths(running))} == {"listening"}


def test_a_port_that_another_program_has_is_reported(clinic):
    service = make_service(clinic.lab, "web", 80, PORT, backends=("b",))
    with clinic.lab["a"].inside():
        other = socket.create_server(("0.0.0.0", 80))
    with other, Forwarder(clinic.lab, make_config(service)) as forwarder:
        found = clinic.complaints("a", **paths(forwarder))
        assert [(finding.id, finding.subject) for finding in found] == [("listening", "tcp:0.0.0.0:80")]
        assert "EADDRINUSE" in found[0].what


def test_a_backend_without_local_delivery_is_reported(clinic, running):
    more = make_service(clinic.lab, "web", 80, PORT, backends=("b", "c"))
    running.configure(make_config(more))
    found = clinic.complaints("a", **paths(running))
    assert {(finding.id, finding.subject) for finding in found} == {
        ("families", clinic.lab["c"].ipv4),
        ("families", clinic.lab["c"].ipv6),
    }


def test_a_missing_capability_is_reported(clinic, running, tmp_path):
    """The runtime file names another process, which has dropped the capability."""
    argv = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", "sleep", "100"]
    process = clinic.lab["a"].spawn(argv)
    file = tmp_path / "forwarder.json"
    file.write_text(json.dumps({"pid": process.pid}))
    options = {**paths(running), "runtime": str(file)}
    eventually(lambda: [finding.id for finding in clinic.complaints("a", **options)] == ["forwarder"])
    assert "has no CAP_NET_RAW" in clinic.complaints("a", **options)[0].what
