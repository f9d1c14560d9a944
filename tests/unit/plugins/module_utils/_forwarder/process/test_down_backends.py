# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker ends the sessions of the backends that the checker has found down, and no others."""

from __future__ import annotations

import pytest

from ..changing_host import ADDRESSES, DATAGRAM, only_relay, opened, service


@pytest.fixture
def hosts(make, serve, family):
    def begin(protocol, **options):
        """(host, whether its one session is open)"""
        if protocol == "udp":
            server = serve(family, DATAGRAM)
            web = service(server.backend(), family=family, protocol="udp")
            host = make(web)
            host.datagram_client(web.listen[0], b"?")
            host.received(server.sock)
            return host, lambda: bool(host.udp.table.flows)
        server = serve(family, **options)
        web = service(server.backend(), family=family)
        host = make(web)
        if options:  # its backend does not answer the connect
            host.client(web.listen[0], b"hello")
            only_relay(host)
        else:
            opened(host, web, server)
        return host, lambda: bool(host.tcp.sessions)

    return begin


def tell(host, *down):
    host.channel.send({"down": down})
    host.worker._receive(0)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("change", [False, True])
def test_the_sessions_of_a_backend_that_is_down_end_in_every_config(hosts, protocol, family, change):
    host, is_open = hosts(protocol)
    (other,) = {"ipv4", "ipv6"} - {family}
    if change:  # the session stays with the runtime of a config that is not served any more
        host.change(service(*host.worker.config.services[0].backends, name="new", family=family))
    at = ADDRESSES[family]
    tell(host, ["mail", "b", family, at], ["web", "c", family, at], ["web", "b", other, at])
    tell(host, ["web", "b", family, "198.18.0.99"])  # the session goes on at an earlier address of the backend
    assert is_open()
    tell(host, ["web", "b", family, "198.18.0.99"], ["web", "b", family, at], ["web", "x", family, at])
    assert not is_open()
    assert [one["ended"] for one in host.events("session" if protocol == "udp" else "connection")] == ["backend down"]
    assert host.events("sessions of a backend that is down ended")[0]["sessions"] == 1
    assert host.numbers[1].total("service", "ended_backend_down") == 1
    assert host.active() == {}


def test_an_attempt_to_connect_is_not_ended(hosts, family):
    host, is_open = hosts("tcp", full=True)
    tell(host, ["web", "b", family, ADDRESSES[family]])
    assert is_open()
    assert host.numbers[1].total("service", "ended_backend_down") == 0
