# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files of /proc in the kernel's format."""

from __future__ import annotations

import os
import socket
import sys

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts import proc
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts.model import Conntrack, Socket

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
TABLES = {
    "tcp": "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n"
    "   1: 150012C6:1F90 0A0112C6:9C40 01 00000000:00000000 00:00000000 00000000     0        0 2\n",
    "tcp6": "   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 3\n",
    "udp": "   0: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4\n",
}


@pytest.fixture
def root(tmp_path):
    for folder in ("thread-self/net/stat", "sys/net/netfilter"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def test_only_neighbours_with_a_mac_are_read(root):
    head = "IP address       HW type     Flags       HW address            Mask     Device\n"
    rows = ["198.18.0.1 0x1 0x2 02:00:00:00:00:01 * eth0", "198.18.0.9 0x1 0x0 00:00:00:00:00:00 * eth0"]
    (root / "thread-self" / "net" / "arp").write_text(head + "\n".join(rows) + "\n")
    assert proc.arp(str(root)) == (("198.18.0.1", "02:00:00:00:00:01"),)


@pytest.mark.skipif(sys.byteorder != "little", reason="the sample is from a little-endian machine")
def test_listening_sockets_of_both_families_and_protocols_are_read(root):
    for name, rows in TABLES.items():
        (root / "thread-self" / "net" / name).write_text(HEAD + rows)
    expected = (Socket("tcp", "::", 80), Socket("tcp", "0.0.0.0", 8080), Socket("udp", "127.0.0.1", 53))
    assert proc.sockets(str(root)) == expected


def test_the_size_of_the_conntrack_table_and_its_drops_are_read(root):
    assert proc.conntrack(str(root)) is None
    for name, value in (("count", 5), ("max", 1000)):
        (root / "sys" / "net" / "netfilter" / f"nf_conntrack_{name}").write_text(f"{value}\n")
    assert proc.conntrack(str(root)) == Conntrack(5, 1000, 0)
    statistics = "entries  clashres found drop early_drop\n00000005 0 0 0000000a 0\n00000005 0 0 00000001 0\n"
    (root / "thread-self" / "net" / "stat" / "nf_conntrack").write_text(statistics)
    assert proc.conntrack(str(root)) == Conntrack(5, 1000, 11)


def test_effective_user_and_capabilities_of_a_process_are_read(root):
    (root / "7").mkdir()
    (root / "7" / "status").write_text("Name:\tx\nCapPrm:\t0\nUid:\t0\t998\t998\t998\nCapEff:\t0000000000002000\n")
    assert proc.status(str(root), 7) == proc.Status(998, 1 << 13)
    assert proc.status(str(root), 8) is None


def test_links_and_status_work_on_the_real_proc():
    assert proc.links()["lo"] in (True, False)
    assert proc.status("/proc", os.getpid()).uid == os.geteuid()


def test_the_sockets_of_a_relay_are_found_by_the_name_of_its_file():
    name = os.path.basename(os.path.realpath("/proc/self/exe"))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        found = {relay.socket: relay.pid for relay in proc.relays("/proc", [name])}
        assert found[Socket("tcp", *server.getsockname())] == os.getpid()
    assert proc.relays("/proc", ["nope"]) == ()
