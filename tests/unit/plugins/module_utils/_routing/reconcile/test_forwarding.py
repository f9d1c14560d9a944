# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which sysctls forwarding needs on a host, with a directory instead of /proc/sys."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.documents import Document
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.kernel_service import KernelService
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Sysctl
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.sysctl import Sysctls, file_of
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import forwarding

IPV4, IPV6 = "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"
DOCUMENT = Document("kernel_datapath", 204, forwarding=("ipv4", "ipv6"))
HOST = {IPV4: "0", IPV6: "0", "net.ipv4.conf.all.accept_redirects": "1", "net.ipv4.conf.eth0.forwarding": "0"}
HOST |= {f"net.ipv6.conf.{link}.accept_ra": "1" for link in ("all", "default", "eth0", "lo")}
HOST |= {"net.ipv6.conf.eth1/5.accept_ra": "0", "net.ipv6.conf.eth0.forwarding": "0"}
RA = {"net.ipv6.conf.default.accept_ra": "2", "net.ipv6.conf.eth0.accept_ra": "2"}
AROUND = {"net.ipv4.conf.all.accept_redirects": "0", IPV4: "1", **RA, IPV6: "1"}


@pytest.fixture
def sysctls(tmp_path):
    return Sysctls(str(tmp_path / "sysctl.json"), str(tmp_path))


def write(tmp_path, values: dict[str, str]) -> None:
    for name, value in values.items():
        path = tmp_path / file_of(name, str(tmp_path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


@pytest.mark.parametrize(("values", "expected", "strangers"), [
    ({}, AROUND, {"ipv4", "ipv6"}),
    # What forwards already is held, and stays open for others.
    ({IPV4: "1", IPV6: "1"}, {IPV4: "1", IPV6: "1"}, set()),
    ({IPV4: "1"}, {IPV4: "1", **RA, IPV6: "1"}, {"ipv6"}),
])  # fmt: skip
def test_what_is_held_depends_on_whether_the_host_forwards(tmp_path, sysctls, values, expected, strangers):
    write(tmp_path, {**HOST, **values})
    assert {one.name: one.value for one in forwarding.wanted(DOCUMENT, sysctls)} == expected
    assert forwarding.strangers(DOCUMENT, sysctls) == strangers
    for one in forwarding.wanted(DOCUMENT, sysctls):
        sysctls.hold("kernel_datapath", one)
    assert {one.name: one.value for one in forwarding.wanted(DOCUMENT, sysctls)} == expected
    # After a reboot, the file says what was there before.
    write(tmp_path, HOST)
    assert forwarding.strangers(DOCUMENT, sysctls) == strangers
    if strangers:
        # A service that retires still needs its family.
        service = KernelService("web", "ipv6", "tcp", "2001:db8::100", 80, (), retiring=True)
        assert "ipv6" in forwarding.strangers(replace(DOCUMENT, forwarding=(), services=(service,)), sysctls)


def test_interfaces_come_and_go_and_networkd_reads_advertisements_itself(tmp_path, sysctls):
    write(tmp_path, HOST)
    for one in forwarding.wanted(DOCUMENT, sysctls):
        sysctls.hold("kernel_datapath", one)
    write(tmp_path, {"net.ipv6.conf.eth0.accept_ra": "0", "net.ipv6.conf.eth9.accept_ra": "1"})
    (tmp_path / file_of("net.ipv6.conf.default.accept_ra", str(tmp_path))).unlink()
    wanted = {one.name for one in forwarding.wanted(DOCUMENT, sysctls) if one.name.endswith("accept_ra")}
    assert wanted == {"net.ipv6.conf.eth9.accept_ra"}
    assert "net.ipv6.conf.default.accept_ra" not in {one.name for one in forwarding.read(DOCUMENT, sysctls)}
    released = forwarding.read(replace(DOCUMENT, forwarding=()), sysctls)
    assert "net.ipv6.conf.default.accept_ra" in {one.name for one in released}


def test_another_owner_that_forwards_wants_that_for_everyone(tmp_path, sysctls):
    write(tmp_path, HOST)
    sysctls.hold("mine", Sysctl(IPV4, "1"))
    assert forwarding.strangers(DOCUMENT, sysctls) == {"ipv6"}


def test_a_host_of_which_only_some_interfaces_forward_is_refused_but_not_after_a_reboot(tmp_path, sysctls):
    write(tmp_path, {**HOST, "net.ipv4.conf.eth0.forwarding": "1"})
    (error,) = forwarding.conflicts(DOCUMENT, sysctls)
    assert error.startswith(f"{IPV4} is 0, but net.ipv4.conf.eth0.forwarding is 1: ")
    sysctls.hold("kernel_datapath", Sysctl(IPV4, "1"))
    write(tmp_path, {IPV4: "0"})
    assert forwarding.conflicts(DOCUMENT, sysctls) == []
