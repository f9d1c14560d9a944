# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sysctls and the file of original values, with a directory instead of /proc/sys."""

from __future__ import annotations

import json

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Setting, Sysctl
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import NotReady, Refused
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.sysctl import Sysctls, file_of

NAME = "net.ipv4.conf.eth0/100.accept_redirects"
WANT = Sysctl(NAME, "0")


@pytest.fixture
def tree(tmp_path):
    file = tmp_path / "proc" / "net" / "ipv4" / "conf" / "eth0.100" / "accept_redirects"
    file.parent.mkdir(parents=True)
    file.write_text("1\n")
    return file


@pytest.fixture
def sysctls(tree, tmp_path):
    return Sysctls(str(tmp_path / "var" / "sysctl.json"), str(tmp_path / "proc"))


def read(sysctls, owner: str = "one", *wanted: Sysctl) -> Setting:
    (setting,) = sysctls.read(owner, wanted)
    return setting


def test_a_dot_in_an_interface_name_stays_in_the_path():
    assert file_of(NAME) == "/proc/sys/net/ipv4/conf/eth0.100/accept_redirects"


def test_a_released_sysctl_is_restored(sysctls, tree):
    assert read(sysctls, "one", WANT) == Setting(NAME, "1")
    sysctls.hold("one", WANT)
    assert tree.read_text() == "0"
    assert json.loads(sysctls.memory()) == {"schema": 1, "sysctls": {NAME: {"found": "1", "owners": {"one": "0"}}}}
    held = read(sysctls, "one", WANT)
    assert held == Setting(NAME, "0", True, "1")
    sysctls.release("one", held)
    assert tree.read_text() == "1"
    assert sysctls.memory() is None


def test_a_held_sysctl_is_read_even_if_it_is_no_longer_desired(sysctls):
    sysctls.hold("one", WANT)
    assert read(sysctls, "one") == Setting(NAME, "0", True, "1")
    assert sysctls.read("two", ()) == ()


def test_the_last_owner_restores_the_value(sysctls, tree):
    sysctls.hold("one", WANT)
    sysctls.hold("two", WANT)
    assert read(sysctls, "one").restore is None
    sysctls.release("one", read(sysctls, "one"))
    assert tree.read_text() == "0"
    sysctls.release("two", read(sysctls, "two"))
    assert tree.read_text() == "1"


def test_what_another_owner_holds_gets_its_value_and_counts_as_chosen(sysctls, tree):
    assert sysctls.before("one", NAME) == "1"
    sysctls.hold("one", WANT)
    assert (sysctls.before("one", NAME), sysctls.before("two", NAME)) == ("1", "0")
    sysctls.hold("two", WANT)
    tree.write_text("1\n")  # by the kernel, when forwarding ends
    sysctls.release("one", read(sysctls, "one"))
    assert tree.read_text() == "0"


def test_a_value_is_not_written_again(sysctls, tree, monkeypatch):
    """To switch forwarding on again would remove default routes."""
    tree.write_text("0\n")
    monkeypatch.setattr(sysctls, "_write", lambda *_call: pytest.fail("written"))
    sysctls.hold("one", WANT)
    sysctls.release("one", read(sysctls, "one"))


def test_interfaces_are_named_as_in_sysctls(sysctls, tree):
    (tree.parent.parent / "all").mkdir()
    assert (sysctls.links("ipv4"), sysctls.links("ipv6")) == (["eth0/100"], [])


def test_a_value_that_someone_else_changed_is_not_restored_until_it_is_held_again(sysctls, tree):
    sysctls.hold("one", WANT)
    tree.write_text("2\n")
    setting = read(sysctls, "one")
    assert setting.restore is None
    sysctls.hold("one", WANT)
    assert read(sysctls, "one").restore == "1", "the original value survives a second hold"
    tree.write_text("2\n")
    sysctls.release("one", setting)
    assert tree.read_text() == "2\n"
    assert sysctls.memory() is None


def test_two_owners_must_agree_on_the_value_and_a_missing_sysctl_is_waited_for_unless_it_is_of_conntrack(sysctls):
    sysctls.hold("one", WANT)
    with pytest.raises(Refused, match="two needs 2, but one holds it at 0"):
        sysctls.read("two", (Sysctl(NAME, "2"),))
    with pytest.raises(NotReady, match="eth7"):
        sysctls.read("one", (Sysctl("net.ipv4.conf.eth7.rp_filter", "0"),))
    timeout = Sysctl("net.netfilter.nf_conntrack_udp_timeout", "65")
    assert sysctls.read("three", (timeout,)) == (Setting(timeout.name, ""),)
    assert sysctls.absent((timeout,)) == {}


def test_a_held_sysctl_of_a_missing_interface_is_released(sysctls, tree):
    sysctls.hold("one", WANT)
    tree.unlink()
    setting = read(sysctls, "one")
    sysctls.release("one", setting)
    assert sysctls.memory() is None
    assert not tree.exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 2, "sysctls": {}}'])
def test_an_invalid_file_is_not_overwritten(sysctls, tmp_path, content):
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "sysctl.json").write_text(content)
    with pytest.raises(Refused, match=r"sysctl\.json"):
        sysctls.hold("one", WANT)
    assert sysctls.memory() == content
