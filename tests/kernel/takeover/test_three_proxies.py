# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Three proxies, of which two die, and a virtual address on the link."""

from __future__ import annotations

from tests.support.takeover import Fleet, kernel_services, serve, streaming

HOSTS = ["client", "router", "a", "a2", "b", "c", "d"]
COUNTS = dict.fromkeys(("down", "up", "idle", "echo", "udp"), 3)


def test_three_proxies_with_an_address_on_the_link_and_clients_without_timestamps(lab, tmp_path):
    """Two of the three die. A move on the link is announced by gratuitous ARP and neighbour advertisements."""
    lab["client"].sysctl("net.ipv4.tcp_timestamps", "0")
    services = kernel_services(90, ["b:8090", "c:8090"])
    fleet = Fleet(lab, tmp_path, services, proxies=("a", "a2", "d"), backends=("b", "c"), on_link=True)
    serve(lab, "bc", [8090])
    fleet.start()
    with streaming(lab, {90: COUNTS}) as streams:
        fleet.cut("a2")
        fleet.take_over("a", "d", streams)
        for running in streams:
            running.all_move()
    fleet.close()
