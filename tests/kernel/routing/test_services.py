# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The document of services that the kernel forwards: applied and removed as a whole, with the forwarding it needs."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import struct
import time

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents, store
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import Refused
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.backend_states import States

from tests.support import routing, tcp
from tests.support.addresses import BITS, FAMILIES, address_of
from tests.support.routing import handshake, local_delivery, return_path
from tests.support.takeover import HOST, VIRTUAL
from tests.support.waiting import eventually

HOSTS = ["client", "router", "a", "b", "c"]
OWNER = "kernel_datapath"
LATER = b"later"
SWITCH = {"ipv4": "net.ipv4.ip_forward", "ipv6": "net.ipv6.conf.all.forwarding"}
REDIRECTS, RA = "net.ipv4.conf.all.accept_redirects", "net.ipv6.conf.eth0.accept_ra"
DROPPED = {family: f'counter name "strangers_{family}"' for family in FAMILIES}


def service(lab, family: str, *names: str, port: int = 80, **more: object) -> dict:
    backends = [{"name": name, "address": address_of(lab[name], family), "port": 8080} for name in names]
    place = {"family": family, "protocol": "tcp", "address": VIRTUAL[family], "port": port, "backends": backends}
    return {"name": "web", **place, **more}


def document(*services: dict, **more: object) -> dict:
    families = sorted({each["family"] for each in services})
    bypass = {"priority": 1099, "fwmark": 255, "fwmask": 255, "action": "lookup", "table": 254}
    rules = [{"family": family, **bypass} for family in families]
    sysctls = [{"name": f"net.ipv4.conf.{link}.send_redirects", "value": "0"} for link in ("all", "eth0")]
    sysctls.append({"name": "net.netfilter.nf_conntrack_acct", "value": "1"})
    parts = {"rules": rules, "sysctls": sysctls, "services": list(services), "forwarding": families}
    return {"schema": 1, "owner": OWNER, "protocol": 204, **parts, **more}


def settings(host) -> list[str]:
    """All sysctls that forwarding may change."""
    names = r"ip_forward|forwarding|accept_ra|accept_redirects|nf_conntrack_acct"
    command = f"sysctl -a 2> /dev/null | grep -E '[.]({names}) ='"
    return host.run(["sh", "-c", command]).stdout.splitlines()


def value(host, name: str) -> str:
    return host.run(["sysctl", "-n", name]).stdout.strip()


def table(host) -> str:
    return host.run(["nft", "list", "table", "inet", "l4proxy_datapath"], check=False).stdout


@pytest.fixture
def a(lab):
    """Host a, which delivers replies of b locally, as a proxy with a forwarder. In the end all is as before."""
    host = lab["a"]
    valid = {"name": "net.ipv4.conf.all.src_valid_mark", "value": "1"}
    lab.engine.apply(host, {**local_delivery(lab["b"]), "sysctls": [valid]})
    host.run(["modprobe", "nf_conntrack"], check=False)
    before = routing.listing(host), settings(host)
    try:
        yield host
    finally:
        lab.engine.remove(host, OWNER)
    assert (routing.listing(host), settings(host)) == before


@pytest.fixture(scope="module", autouse=True)
def servers(lab):
    """Servers on b and c, which say their name and the client's address; their replies leave through a."""
    for name in ("b", "c"):
        lab.engine.apply(lab[name], return_path(lab["a"]))
    for family, (option, length) in HOST.items():
        route = [f"{VIRTUAL[family]}/{length}", "via", address_of(lab["a"], family)]
        lab["router"].run(["ip", option, "route", "replace", *route])

    accepted = []

    def serve(sock: socket.socket, peer: tuple) -> None:
        accepted.append(sock)
        with sock, contextlib.suppress(OSError):
            sock.sendall(f"{peer[0]}\n".encode())
            while data := sock.recv(100):
                time.sleep(0.5 * (data == LATER))
                sock.sendall(data)

    with tcp.serving(lab, ["b", "c"], 8080, serve):
        yield
        for sock in accepted:
            with contextlib.suppress(OSError):  # it has ended
                sock.shutdown(socket.SHUT_RDWR)


def line(sock: socket.socket, sent: bytes = b"") -> str:
    sock.sendall(sent)
    return sock.recv(100).decode().strip()


def test_services_are_forwarded_until_they_are_removed(lab, a, family):
    wanted = document(service(lab, family, "b"))
    foretold = lab.engine.apply(a, wanted, check=True)
    assert table(a) == ""
    done = lab.engine.apply(a, wanted)
    assert (foretold.changes, foretold.diff) == (done.changes, done.diff)
    name = f"{VIRTUAL[family]}:80" if family == "ipv4" else f"[{VIRTUAL[family]}]:80"
    assert f"forward {name}/tcp to b" in done.changes
    # Strangers are kept out before the host forwards.
    assert [done.changes[-1], value(a, SWITCH[family])] == [f"set sysctl {SWITCH[family]}: 0 -> 1", "1"]
    with tcp.connect(lab, VIRTUAL[family], 80) as sock:
        assert line(sock) == address_of(lab["client"], family)
    again = lab.engine.apply(a, wanted)
    assert (again.changes, again.diff) == ((), ())
    lab.engine.remove(a, OWNER)
    assert (table(a), value(a, SWITCH[family])) == ("", "0")
    assert handshake(lab["client"], address_of(lab["client"], family), VIRTUAL[family], port=80) != "established"


def test_a_backend_of_both_datapaths_may_send_first_after_conntrack_has_forgotten(lab, a, family):
    lab.engine.apply(a, document(service(lab, family, "b")))
    with tcp.connect(lab, VIRTUAL[family], 80) as sock:
        line(sock)
        sock.sendall(LATER)
        a.run(["conntrack", "-F"])
        assert sock.recv(100) == LATER


def advertise(lab) -> None:
    """Let the router send one advertisement as the default router for half an hour (RFC 4861)."""
    with lab["router"].inside(), socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        link = socket.if_nametoindex(lab["router"].on("inside").dev)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, link)
        sock.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0), ("ff02::1", 0, 0, link))


def advertised(host) -> str:
    return host.run(["ip", "-6", "route", "show", "default", "proto", "ra"]).stdout


def test_a_default_route_of_router_advertisements_survives_forwarding(lab, a):
    a.run(["sysctl", "-qw", f"{RA}=1"])
    try:
        advertise(lab)
        eventually(lambda: advertised(a))
        lab.engine.apply(a, document(service(lab, "ipv6", "b")))
        assert (value(a, RA), value(a, SWITCH["ipv6"])) == ("2", "1")
        assert advertised(a)
        # A new router is learnt, too.
        a.run(["ip", "-6", "route", "flush", "proto", "ra"])
        advertise(lab)
        eventually(lambda: advertised(a))
        lab.engine.remove(a, OWNER)
        assert (value(a, RA), value(a, SWITCH["ipv6"])) == ("1", "0")
        assert advertised(a)
        # The control: forwarding alone.
        a.run(["sysctl", "-qw", f"{SWITCH['ipv6']}=1"])
        assert not advertised(a)
    finally:
        a.run(["ip", "-6", "route", "flush", "proto", "ra"])
        a.run(["sysctl", "-qw", f"{SWITCH['ipv6']}=0", f"{RA}=0"])


def test_strangers_are_dropped_only_where_the_host_did_not_forward_before_also_after_a_reboot(lab, a, family):
    wanted = document(service(lab, family, "b"))
    # Replies of b would be delivered locally.
    client, c = (address_of(lab[name], family) for name in ("client", "c"))
    option = "-4" if family == "ipv4" else "-6"
    route = [f"{c}/{BITS[family]}", "via", address_of(a, family)]
    a.run(["sysctl", "-qw", f"{SWITCH[family]}=1"])
    lab["router"].run(["ip", option, "route", "add", *route])
    try:
        lab.engine.apply(a, wanted)
        assert (DROPPED[family] in table(a), handshake(lab["client"], client, c)) == (False, "established")
        lab.engine.remove(a, OWNER)
        assert value(a, SWITCH[family]) == "1"
        a.run(["sysctl", "-qw", f"{SWITCH[family]}=0"])
        lab.engine.apply(a, wanted)
        assert (DROPPED[family] in table(a), handshake(lab["client"], client, c)) == (True, "silent")
        # A reboot: all is gone but the file with the values from before.
        a.run(["nft", "delete", "table", "inet", "l4proxy_datapath"])
        a.run(["sysctl", "-qw", f"{SWITCH[family]}=0"])
        lab.engine.apply(a, wanted)
        assert (DROPPED[family] in table(a), value(a, SWITCH[family])) == (True, "1")
    finally:
        lab["router"].run(["ip", option, "route", "del", *route])
        lab.engine.remove(a, OWNER)
        a.run(["sysctl", "-qw", f"{SWITCH[family]}=0", f"{REDIRECTS}=1"])


# Another backend of the service, and another service.
@pytest.mark.parametrize(("family", "port"), [("ipv4", 80), ("ipv6", 81)], indirect=["family"])
def test_what_a_document_lists_no_longer_keeps_its_connections_until_they_end(lab, a, family, port, tmp_path):
    options = {"directory": str(tmp_path)}
    lab.engine.apply(a, document(service(lab, family, "b")), **options)
    with tcp.connect(lab, VIRTUAL[family], 80) as first, tcp.connect(lab, VIRTUAL[family], 80) as second:
        line(first)
        now, moved = time.time(), document(service(lab, family, "c", port=port))
        outcome = lab.engine.apply(a, moved, now=now, drain=math.inf, **options)
        assert len(outcome.retiring) == 1, outcome.retiring
        assert line(first, b"one") == "one"
        with tcp.connect(lab, VIRTUAL[family], port) as new:
            assert line(new) == address_of(lab["client"], family)
        # As the keeper does it, with the stored document; nothing may be removed in the first 10 minutes.
        stored = documents.dump(store.load(store.path_of(str(tmp_path), OWNER)))
        kept = lab.engine.apply(a, stored, now=now + 700)
        assert (kept.changed, line(first, b"two"), len(kept.retiring)) == (False, "two", 1)
        lab.engine.apply(a, moved, now=now, drain=5, **options)
        stored = documents.dump(store.load(store.path_of(str(tmp_path), OWNER)))
        outcome = lab.engine.apply(a, stored, now=now + 10)
        assert ([cut.connections for cut in outcome.cut], outcome.retiring) == ([2], ())
        second.settimeout(0.3)
        second.sendall(b"three")
        assert b"three" not in received(second)


def received(sock: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(OSError):
        while part := sock.recv(100):
            data += part
    return data


def test_an_ended_drain_leaves_the_host_as_without_the_service(lab, a, tmp_path):
    options = {"directory": str(tmp_path)}
    lab.engine.apply(a, document(service(lab, "ipv4", "b"), service(lab, "ipv6", "b")), **options)
    now = time.time()
    with tcp.connect(lab, VIRTUAL["ipv6"], 80) as sock:
        line(sock)
        lab.engine.apply(a, document(service(lab, "ipv4", "b")), now=now, drain=math.inf, **options)
        stored = documents.dump(store.load(store.path_of(str(tmp_path), OWNER)))
        lab.engine.apply(a, stored, now=now + 700)
        assert (line(sock, b"one"), value(a, SWITCH["ipv6"])) == ("one", "1")
    eventually(lambda: lab.engine.apply(a, stored, now=now + 700).retiring == (), interval=0.2)
    assert (value(a, SWITCH["ipv6"]), "ip6" in table(a)) == ("0", False)
    assert "fwmark 0xff" not in a.run(["ip", "-6", "rule"]).stdout
    assert value(a, SWITCH["ipv4"]) == "1"


def test_a_run_without_purge_keeps_services_also_for_the_keeper(lab, a, tmp_path):
    options = {"directory": str(tmp_path), "now": time.time()}
    lab.engine.apply(a, document(service(lab, "ipv4", "b"), service(lab, "ipv6", "b")), **options)
    other = document(service(lab, "ipv4", "c", port=81))
    lab.engine.apply(a, other, purge=False, **options)
    stored = documents.dump(store.load(store.path_of(str(tmp_path), OWNER)))
    assert lab.engine.apply(a, stored, now=time.time()).changes == ()
    for family, port in (("ipv4", 80), ("ipv6", 80), ("ipv4", 81)):
        tcp.connect(lab, VIRTUAL[family], port).close()
    outcome = lab.engine.apply(a, other, **options)
    assert f"stop forwarding {VIRTUAL['ipv4']}:80/tcp to b" in "; ".join(outcome.changes)
    assert value(a, SWITCH["ipv6"]) == "0"


def test_states_of_backends_are_no_change_and_a_flushed_chain_is(lab, a):
    wanted = document(service(lab, "ipv4", "b", "c"))
    lab.engine.apply(a, wanted)
    for state, name in (({"b": "down"}, "c"), ({"c": "down"}, "b")):
        outcome = lab.engine.apply(a, wanted, {"backend_states": lambda state=state: States({"web": state})})
        assert outcome.changes == ()
        found = json.loads(a.run(["nft", "-j", "list", "chain", "inet", "l4proxy_datapath", BUCKETS]).stdout)
        assert f"to_tcp-{VIRTUAL['ipv4']}-80_{name}" in json.dumps(found)
    for chain in (BUCKETS, "forward"):
        a.run(["nft", "flush", "chain", "inet", "l4proxy_datapath", chain])
        assert lab.engine.apply(a, wanted).changes == ("restore the nft table of services",)
        assert lab.engine.apply(a, wanted).changes == ()


BUCKETS = f"buckets_tcp-{VIRTUAL['ipv4']}-80"


def test_a_host_of_which_only_some_interfaces_forward_is_refused(lab, a, family):
    name = f"net.{family}.conf.eth0.forwarding"
    a.run(["sysctl", "-qw", f"{name}=1"])
    try:
        with pytest.raises(Refused, match=f"{SWITCH[family]} is 0, but {name} is 1"):
            lab.engine.apply(a, document(service(lab, family, "b")))
    finally:
        a.run(["sysctl", "-qw", f"{name}=0"])
    assert table(a) == ""
