# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The output of the command, its order, and the exit status."""

from __future__ import annotations

import io
import json

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor import finding, registry, report
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts import gather

from . import cases

BROKEN = cases.setting(cases.peer(mac="02:00:00:00:00:aa"), conf__all__accept_redirects="1")


@pytest.fixture
def call(monkeypatch):
    def run(facts, as_json=False, clients=(), ports=()):
        asked = []
        monkeypatch.setattr(gather, "gather", lambda *arguments: asked.append(arguments[2:]) or facts)
        out, err = io.StringIO(), io.StringIO()
        code = report.run(gather.Sources(), clients, ports, as_json, out, err)
        return code, out.getvalue(), err.getvalue(), asked

    return run


def test_failures_come_first_in_the_text(call):
    code, text, _err, _asked = call(BROKEN)
    lines = text.splitlines()
    assert code == 1
    assert lines[0] == (
        "FAIL proxy_mac: proxy a should have MAC 02:00:00:00:00:11, but 198.18.0.11 is at 02:00:00:00:00:aa. Packets "
        "from that MAC get no mark, so their replies bypass the proxy. Fix: correct or remove l4proxy_mac in the "
        "proxy's host_vars, and run the return_path role."
    )
    assert [line[:4] for line in lines] == ["FAIL", "warn", *["ok  "] * (len(lines) - 2)]


def test_the_json_has_the_documented_shape(call):
    _code, text, _err, _asked = call(BROKEN, as_json=True)
    found = json.loads(text)
    assert (found["schema"], found["failed"], found["warned"]) == (1, 1, 1)
    assert list(found["findings"][0]) == ["id", "status", "subject", "what", "why", "fix"]
    assert found["findings"][0]["id"] == "proxy_mac"


def test_the_exit_status_is_0_without_failures_even_with_a_warning(call):
    assert call(cases.BACKEND)[0] == 0
    assert call(cases.setting(cases.BACKEND, conf__all__accept_redirects="1"))[0] == 0


def test_clients_and_ports_are_parsed_and_passed_on(call):
    code, _text, _err, asked = call(cases.BACKEND, clients=["192.0.2.7", "2001:DB8::7"], ports=["80", "53/udp"])
    assert code == 0
    assert asked == [({"ipv4": "192.0.2.7", "ipv6": "2001:db8::7"}, [("tcp", 80), ("udp", 53)])]


@pytest.mark.parametrize("as_json", [False, True])
def test_an_exception_in_a_check_does_not_end_the_report(call, as_json):
    code, text, err, _asked = call(cases.setting(cases.PROXY, ip_local_port_range="nonsense"), as_json)
    assert (code, err) == (0, "")
    assert "check port_range failed: ValueError" in text
    assert "the keeper runs and is enabled at boot" in text


@pytest.mark.parametrize(("options", "message"), [
    ({"clients": ["b"]}, "'b' does not appear to be an IPv4 or IPv6 address"),
    ({"clients": ["192.0.2.7", "192.0.2.8"]}, "192.0.2.7 and 192.0.2.8 are both ipv4"),
    ({"ports": ["0"]}, "'0' is not PORT"),
    ({"ports": ["80/icmp"]}, "'80/icmp' is not PORT"),
])  # fmt: skip
def test_a_wrong_option_is_an_error_with_exit_status_2(call, options, message):
    code, text, err, _asked = call(cases.BACKEND, **options)
    assert (code, text) == (2, "")
    assert message in err


def test_findings_of_one_status_keep_their_order_and_a_check_can_be_ignored():
    findings = [finding.skip("x"), finding.warn("1", *"xxx"), finding.fail("1", *"xxx"), finding.fail("2", *"xxx")]
    found = [f"{found.status} {found.subject}" for found in finding.ordered(findings)]
    assert found == ["fail 1", "fail 2", "warn 1", "skip "]
    assert "proxy_mac" not in [found.id for found in registry.examine(BROKEN, ["proxy_mac"])]
