# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module packet_mark, with each mark engine. (test_examples.py runs its examples.)"""

from __future__ import annotations

import json

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.trueip.l4proxy.plugins.module_utils import _host_module
from ansible_collections.trueip.l4proxy.plugins.modules import packet_mark

from tests.support.marking import NFT, VARIANTS, Marked, marked

HOSTS = ["a", "b"]

OWNERS = ("packet_mark", "my_proxy")
ONE = {"name": "lb1", "id": "0x300", "mask": "0xff00", "mac": ["02:00:00:00:00:0b"], "via": ["198.18.0.11"]}
OTHER = {"name": "up", "id": "0x200", "mask": "0xff00", "iif": "eth0"}


@pytest.fixture(params=VARIANTS, ids=str)
def b(lab, request):
    with marked(lab, "b", request.param, OWNERS) as host:
        yield host


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the module's main() on a host where ``iptables`` is the variant's; return its result."""

    def call(b: Marked, check: bool = False, **options) -> dict:
        if b.variant.flavour:
            monkeypatch.setattr(_host_module, "command_runner", lambda _module: b.variant.run)
        arguments = {"engine": b.variant.engine, **options, "_ansible_check_mode": check, "_ansible_diff": True}
        told = []
        # If the controller's part of Ansible is loaded too, warnings would go to its display.
        monkeypatch.setattr(AnsibleModule, "warn", lambda _module, sentence: told.append(sentence))
        with b.host.inside(), patch_module_args(arguments), pytest.raises(SystemExit):
            packet_mark.main()
        return {**json.loads(capsys.readouterr().out), "told": told}

    return call


def test_packet_mark_adds_changes_and_removes_a_mark(b, run):
    before = b.variant.save(b.host), b.read("packet_mark")
    foretold = run(b, check=True, **ONE)
    assert (b.variant.save(b.host), b.read("packet_mark")) == before
    done = run(b, **ONE)
    assert foretold == done
    assert (done["changed"], done["engine"]) == (True, b.variant.engine)
    assert "lb1 0x300/0xff00 from 02:00:00:00:00:0b via 198.18.0.11" in done["diff"][0]["after"]
    assert ("cannot match a next hop" in " ".join(done["told"])) == (b.variant.engine == "iptables")
    assert [mark["name"] for mark in run(b, **OTHER)["marks"]] == ["up", "lb1"]
    assert not run(b, **ONE)["changed"]
    damage(b)
    assert run(b, **ONE)["changed"]
    assert b.read("packet_mark").sound
    for name in ("up", "lb1"):
        assert run(b, name=name, state="absent")["changed"]
    assert b.variant.save(b.host) == []
    assert b.read("packet_mark").marks == ()


def damage(b: Marked) -> None:
    if b.variant is NFT:
        b.run("nft flush chain inet l4proxy_packet_mark save_768")
    else:
        b.run("iptables -t mangle -D INPUT -j L4PROXY_PACKET_MARK_IN")


def test_a_change_of_engine_moves_all_marks_of_the_owner(lab, run):
    with marked(lab, "b", NFT, OWNERS) as b:
        run(b, **ONE)
        run(b, **OTHER)
        assert run(b, engine="iptables", **OTHER)["changed"]
        live = b.read("packet_mark")
        assert (live.engine, live.sound, [mark.name for mark in live.marks]) == ("iptables", True, ["up", "lb1"])
        kept = run(b, engine="auto", **OTHER)
        assert (kept["changed"], kept["engine"]) == (False, "iptables")


REFUSALS = [
    ({"id": "0x10b", "mask": "0xff"}, "id: 0x10b has bits outside its mask 0xff"),
    ({"mac": None, "iif": "eth9"}, "iif: this host has no interface eth9"),
]


def test_invalid_marks_are_refused_before_any_change(lab, run):
    with marked(lab, "b", NFT, OWNERS) as b:
        run(b, **ONE)
        before = b.listing()
        for options, sentence in REFUSALS:
            given = {key: value for key, value in {**ONE, **options}.items() if value is not None}
            for check in (True, False):
                result = run(b, check, **given)
                assert result.get("failed"), (options, result)
                assert sentence in result["msg"]
        assert b.listing() == before
