# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The config of the role virtual_ip in the real keepalived, on two proxies; b is a stranger on their link."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import time

import jinja2
import pytest
import yaml
from ansible_collections.trueip.l4proxy.plugins.module_utils import _vrrp
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._virtual_ips import virtual_ips

from tests.lab.netns import REPOSITORY, NamespaceLab, stop
from tests.support.waiting import eventually
from tests.unit.plugins.plugin_utils.fleet_data import BOTH, WEB, fleet, hostvars

HOSTS = ["a", "a2", "b"]
ROLE = REPOSITORY / "roles" / "virtual_ip"
ADDRESSES = {"ipv4": "198.18.0.100", "ipv6": "2001:db8::100"}
WEB_IP = {"name": "web", "addresses": [*ADDRESSES.values()], "proxies": ["a", "a2"], "vrid": 100}
MAIL_IP = {"name": "mail", "addresses": ["198.18.0.101"], "proxies": ["a2", "a"]}


def derived(name, *entries):
    mine = {"l4proxy_virtual_ips": list(entries)}
    return virtual_ips(fleet(name, [WEB], hostvars(a=mine, a2=mine), **BOTH), name)["virtual_ips"]


class Proxy:
    """keepalived with the role's config on a host; its health is a file."""

    def __init__(self, lab, name, *entries, hold_time=1, change=lambda text: text):
        self.host, self.name, self.path = lab[name], name, lab.tmp / f"{name}.conf"
        self.health, self.pids = lab.tmp / f"{name}-healthy", lab.tmp / f"{name}-keepalived.pid"
        self.hold_time, self.change = hold_time, change
        self.healthy(True)
        self.write(*entries)
        pids = [f"--pid={self.pids}", f"--vrrp_pid={self.pids}.vrrp", "--vrrp"]
        command = ["keepalived", "--dont-fork", "--log-console", f"--use-file={self.path}", *pids]
        self.process = self.host.spawn(command)

    def write(self, *entries):
        values = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())
        values |= {"_virtual_ip_health": f"/usr/bin/test -e {self.health}", "virtual_ip_hold_time": self.hold_time}
        template = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True).from_string(
            (ROLE / "templates" / "l4proxy.conf.j2").read_text()
        )
        text = template.render(values, ansible_managed="test", _virtual_ips=derived(self.name, *entries))
        self.path.write_text(self.change(text))
        check = ["keepalived", "--config-test", "--config-id", "l4proxy_check", f"--use-file={self.path}"]
        self.host.run(check)

    def healthy(self, state):
        self.health.touch() if state else self.health.unlink(missing_ok=True)

    def holds(self, *addresses):
        with self.host.inside():
            return [each for each in addresses or ADDRESSES.values() if _vrrp.holds(each)]

    def holds_all(self):
        return len(self.holds()) == len(ADDRESSES)

    def entered(self, state):
        """How often it has become holder or standby."""
        return self.process.log.read_text().count(f"(l4proxy_web_ipv4) Entering {state} STATE")


@contextlib.contextmanager
def keepalived(lab, *entries, **options):
    """Start keepalived on both proxies, one after the other: the first has the addresses then."""
    started = []
    try:
        for name in ("a", "a2"):
            started.append(Proxy(lab, name, *(entries or [WEB_IP]), **options))
            eventually(started[0].holds_all, explain=started[0].process.log.read_text)
        eventually(lambda: started[1].entered("BACKUP"))
        yield started
    finally:
        for proxy in started:
            stop(proxy.process)


@pytest.fixture
def own_lab():
    """Other hosts than those of the shared pair."""
    with NamespaceLab(f"v{os.getpid()}", HOSTS) as lab:
        yield lab


@pytest.fixture(scope="module")
def proxies(lab):
    with keepalived(lab) as started:
        yield started


@pytest.fixture
def pair(proxies):
    """The holder, and the other proxy."""
    return sorted(proxies, key=Proxy.holds_all, reverse=True)


def test_an_unhealthy_holder_gives_both_families_up_within_two_seconds(pair):
    holder, other = pair
    assert (holder.holds_all(), other.holds()) == (True, [])
    begin = time.monotonic()
    holder.healthy(False)
    eventually(lambda: not holder.holds() and other.holds_all(), patience=2.5)
    assert time.monotonic() - begin < 2.5
    backups = holder.entered("BACKUP")
    holder.healthy(True)
    eventually(lambda: holder.entered("BACKUP") > backups)
    time.sleep(1)
    assert (holder.holds(), other.holds_all()) == ([], True), "without preempt they stay"


@pytest.mark.parametrize(("hold_time", "moves"), [(5, 1), (1, 2)], ids=["damped", "control"])
def test_a_health_that_flaps_moves_the_addresses_once(own_lab, hold_time, moves):
    with keepalived(own_lab, {**WEB_IP, "preempt": True}, hold_time=hold_time) as (first, second):
        for state, seconds in ((False, 1.2), (True, 3.3)) * 2:
            first.healthy(state)
            time.sleep(seconds)
        assert second.entered("MASTER") == moves
        eventually(first.holds_all, patience=10)


def reload(proxy, *entries):
    proxy.write(*entries)
    os.kill(proxy.process.pid, signal.SIGHUP)


def test_a_reload_moves_no_address_that_did_not_change(pair):
    holder, other = pair
    watch = holder.host.spawn(["ip", "monitor", "address"])
    time.sleep(0.2)
    for proxy in pair:
        reload(proxy, WEB_IP, MAIL_IP)
    eventually(lambda: any(proxy.holds("198.18.0.101") for proxy in pair))
    for proxy in pair:
        reload(proxy, WEB_IP)
    eventually(lambda: not any(proxy.holds("198.18.0.101") for proxy in pair))
    time.sleep(1)
    assert [one for one in ADDRESSES.values() if one in watch.log.read_text()] == []
    assert (holder.holds_all(), other.holds()) == (True, [])
    # The control: an address that does change is seen.
    reload(holder, {**WEB_IP, "addresses": [ADDRESSES["ipv6"], "198.18.0.102"]})
    eventually(lambda: re.search(f"Deleted .*{ADDRESSES['ipv4']}", watch.log.read_text()))
    assert ADDRESSES["ipv6"] not in watch.log.read_text()
    reload(holder, WEB_IP)
    eventually(holder.holds_all)


def advertise(lab, family, to, seconds=1.5):
    """Send advertisements of priority 255 from b to a proxy."""
    kind = _vrrp.FAMILIES[family]
    source, target = (getattr(lab[name], family) for name in ("b", to))
    packed = [socket.inet_pton(kind, each) for each in (source, target, ADDRESSES[family])]
    body = struct.pack("!BBBBHH", 0x31, 100, 255, 1, 50, 0) + packed[2]
    words = packed[0] + packed[1] + struct.pack("!II", len(body), _vrrp.PROTOCOL) + body
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    packet = body[:6] + struct.pack("!H", checksum) + body[8:]
    with lab["b"].inside(), socket.socket(kind, socket.SOCK_RAW, _vrrp.PROTOCOL) as sender:
        for level, option in ((socket.IPPROTO_IP, socket.IP_TTL), (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)):
            if (level == socket.IPPROTO_IPV6) == (family == "ipv6"):
                sender.setsockopt(level, option, 255)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            sender.sendto(packet, (target, 0))
            time.sleep(0.1)


def test_advertisements_of_a_stranger_do_not_take_the_addresses_away(pair, lab, family):
    holder, _other = pair
    before = holder.entered("BACKUP")
    advertise(lab, family, holder.name)
    assert holder.holds_all()
    assert holder.entered("BACKUP") == before


def without_check(text):
    return text.replace("    check_unicast_src\n", "").replace(" min_ttl 255 max_ttl 255", "")


def test_without_the_check_of_the_source_they_do(own_lab):
    with keepalived(own_lab, change=without_check) as (first, _second):
        advertise(own_lab, "ipv4", "a")
        assert first.entered("BACKUP") == 2


@pytest.fixture
def stranger(lab):
    """Another VRRP router: version 2 for IPv4, 3 for IPv6, by multicast."""
    text = "".join(
        f"vrrp_instance {family} {{\n version {version}\n interface eth0\n virtual_router_id 100\n priority 90\n"
        f" virtual_ipaddress {{\n {address}\n }}\n}}\n"
        for family, version, address in (("ipv4", 2, "198.18.0.77"), ("ipv6", 3, "fe80::77"))
    )
    path, pids = lab.tmp / "stranger.conf", lab.tmp / "stranger.pid"
    path.write_text(text)
    command = ["keepalived", "--dont-fork", "--log-console", "--vrrp", f"--use-file={path}"]
    process = lab["b"].spawn([*command, f"--pid={pids}", f"--vrrp_pid={pids}.vrrp"])
    eventually(lambda: process.log.read_text().count("Entering MASTER STATE") == 2)
    yield process
    stop(process)


def test_a_vrid_of_another_router_is_heard_in_both_families(pair, lab, stranger):
    holder, other = pair
    ours = derived(other.name, WEB_IP)
    with other.host.inside():
        begin = time.monotonic()
        adverts = _vrrp.listen(_vrrp.links_of(ours), 3.2)
        assert time.monotonic() - begin < 4
    heard = {(each.family, each.source, each.version, each.addresses) for each in adverts}
    assert len(heard) == 4
    assert heard >= {(family, getattr(holder.host, family), 3, (address,)) for family, address in ADDRESSES.items()}
    of_ipv4, of_ipv6 = _vrrp.clashes(ours, adverts)
    assert of_ipv4 == (
        "vrid 100 of web is in use on eth0: 198.18.0.21 advertises 198.18.0.77 with it. Set another vrid for web in "
        "l4proxy_virtual_ips; not 100"
    )
    assert re.match(r"vrid 100 of web is in use on eth0: fe80::\S+ advertises fe80::77 with it. ", of_ipv6)
    assert list(_vrrp.clashes(derived(other.name, {**WEB_IP, "vrid": 7}), adverts)) == []
    taken = derived(other.name, {**WEB_IP, "addresses": ["198.18.0.77"], "vrid": 7})
    (sentence,) = _vrrp.clashes(taken, adverts)
    assert sentence.startswith(
        "an address of web is in use on eth0: 198.18.0.21 advertises 198.18.0.77 with vrid 100. "
    )


def test_without_another_router_only_the_peer_is_heard_and_is_the_holder(pair):
    holder, other = pair
    ours = derived(other.name, WEB_IP)
    with other.host.inside():
        adverts = _vrrp.listen(_vrrp.links_of(ours), 10, lambda heard: _vrrp.have_holders(ours, heard))
    assert {each.source for each in adverts} == {holder.host.ipv4, holder.host.ipv6}
    assert list(_vrrp.clashes(ours, adverts)) == []


def test_proxies_that_do_not_hear_each_other_both_have_the_addresses(pair):
    with contextlib.ExitStack() as stack:
        for proxy in pair:
            rules = "add table inet drops; add chain inet drops input { type filter hook input priority 0; }"
            proxy.host.run(["nft", f"{rules}; add rule inet drops input meta l4proto 112 drop"])
            stack.callback(proxy.host.run, ["nft", "delete table inet drops"])
        eventually(lambda: all(map(Proxy.holds_all, pair)))
    eventually(lambda: sorted(len(proxy.holds()) for proxy in pair) == [0, 2])
