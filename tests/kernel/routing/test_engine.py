# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The routing engine: idempotent, rolls back failures, refuses foreign objects, leaves nothing behind."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import re
import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing import errors
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents, store
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host import runner
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper import command
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink import kernel

from tests.support import routing
from tests.support.routing import return_path, snmp
from tests.support.waiting import PATIENCE, eventually

HOSTS = ["client", "router", "a", "a2", "b"]

REDIRECTS = tuple(
    (f"net.{family}.conf.{link}.accept_redirects", "0") for family in ("ipv4", "ipv6") for link in ("all", "eth0")
)


def document(lab, **options) -> dict:
    return return_path(lab["a"], lab["a2"], **options)


def value_of(host, name: str) -> str:
    return host.run(["sysctl", "-n", name]).stdout.strip()


def test_a_second_run_changes_nothing(lab, b):
    first = lab.engine.apply(b, document(lab, sysctls=REDIRECTS))
    assert first.changed
    listing = routing.listing(b)
    second = lab.engine.apply(b, document(lab, sysctls=REDIRECTS))
    assert (second.changes, second.diff) == ((), ())
    assert routing.listing(b) == listing


def test_check_mode_predicts_the_changes_and_makes_none(lab, b):
    before = routing.listing(b)
    foretold = lab.engine.apply(b, document(lab, sysctls=REDIRECTS), check=True)
    assert routing.listing(b) == before
    done = lab.engine.apply(b, document(lab, sysctls=REDIRECTS))
    assert foretold == done
    for text in ("ip route default via 198.18.0.11 dev eth0 table 20111", "ip -6 rule 1101: from all fwmark 0xb/0xff"):
        assert text in done.diff[0]["after"]
        assert text not in done.diff[0]["before"]


def test_a_smaller_document_purges_its_own_objects_only(lab, b):
    foreign = ["priority", "1150", "from", "198.18.0.77", "lookup", "20777", "protocol", "150"]
    b.run(["ip", "rule", "add", *foreign])
    lab.engine.apply(b, document(lab))
    lab.engine.apply(b, return_path(lab["a"]))
    text = "\n".join(routing.listing(b))
    assert "20111" in text
    assert "20112" not in text
    assert "save_12" not in text
    assert "lookup 20777 proto 150" in text
    b.run(["ip", "rule", "del", *foreign])


def test_without_purge_surplus_objects_stay(lab, b):
    lab.engine.apply(b, document(lab))
    listing = routing.listing(b)
    assert not lab.engine.apply(b, return_path(lab["a"]), purge=False).changed
    assert routing.listing(b) == listing


def test_a_retiring_proxy_is_kept_and_never_added(lab, b):
    data = document(lab)
    retiring = return_path(lab["a2"])
    for section in ("rules", "routes", "marks"):
        data[section] = [{**item, "retiring": True} if item in retiring[section] else item for item in data[section]]
    lab.engine.apply(b, data)
    assert "20112" not in "\n".join(routing.listing(b))
    lab.engine.apply(b, document(lab))
    both = routing.listing(b)
    assert not lab.engine.apply(b, data).changed
    assert routing.listing(b) == both


def test_damage_is_detected_and_repaired(lab, b):
    lab.engine.apply(b, document(lab))
    whole = sorted(routing.listing(b))
    for damage in (
        "ip rule del priority 1101 fwmark 11/255",
        "ip -6 route replace default via 2001:db8::1 table 20111 proto 202",
        "nft add rule inet l4proxy_return_path output accept",
        "nft flush chain inet l4proxy_return_path save_11",
        "nft delete table inet l4proxy_return_path",
    ):
        b.run(damage.split())
        assert lab.engine.apply(b, document(lab)).changed, damage
        assert sorted(routing.listing(b)) == whole, damage


# --- failure in the middle


class FailingKernel(kernel.Kernel):
    """Fails at the n-th change."""

    def __init__(self, after: int):
        super().__init__()
        self.left = after

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise kernel.NetlinkError(12, "Cannot allocate memory")

    def add_rule(self, *arguments):
        self._count()
        super().add_rule(*arguments)

    def set_route(self, *arguments):
        self._count()
        super().set_route(*arguments)

    def remove_rule(self, *arguments):
        self._count()
        super().remove_rule(*arguments)


def fail_after(number: int) -> dict:
    return {"make_kernel": lambda: FailingKernel(number)}


@pytest.mark.parametrize("number", [1, 4, 8, 12])
def test_a_failed_run_leaves_nothing_behind(lab, b, number):
    settings = [value_of(b, name) for name, _value in REDIRECTS]
    before = routing.listing(b)
    with pytest.raises(errors.ApplyError, match=r"could not add ip.*ENOMEM.*changes made so far were undone"):
        lab.engine.apply(b, document(lab, sysctls=REDIRECTS), fail_after(number))
    assert routing.listing(b) == before
    assert [value_of(b, name) for name, _value in REDIRECTS] == settings


def test_a_failed_removal_restores_what_was_removed(lab, b):
    lab.engine.apply(b, document(lab))
    before = routing.listing(b)
    with pytest.raises(errors.ApplyError, match=r"could not remove ip.*ENOMEM.*changes made so far were undone"):
        lab.engine.apply(b, return_path(lab["a"]), fail_after(2))
    assert sorted(routing.listing(b)) == sorted(before)


def test_a_failed_nft_undoes_rules_and_routes(lab, b):
    def refuse(argv, stdin=None):
        if "-f" in argv and "delete" in stdin and "add" in stdin and '"chain"' in stdin:
            return runner.Completed(1, "", "Error: Operation not permitted")
        return runner.run(argv, stdin)

    before = routing.listing(b)
    with pytest.raises(errors.ApplyError, match=r"Operation not permitted.*changes made so far were undone"):
        lab.engine.apply(b, document(lab), {"runner": refuse})
    assert routing.listing(b) == before


def test_a_missing_nft_is_reported_before_any_change(lab, b):
    def missing(argv, stdin=None):
        raise runner.MissingCommand(argv[0])

    before = routing.listing(b)
    with pytest.raises(errors.MissingPackage, match="install the package nftables"):
        lab.engine.apply(b, document(lab), {"runner": missing})
    assert routing.listing(b) == before
    outcome = lab.engine.apply(b, document(lab), {"runner": missing}, check=True)
    assert outcome.changed
    assert "nftables" in outcome.warnings[0]


# --- others


def test_a_table_of_another_owner_is_refused(lab, b):
    b.run(["ip", "route", "add", "203.0.113.0/24", "via", "198.18.0.1", "table", "20111", "proto", "static"])
    before = routing.listing(b)
    with pytest.raises(errors.Refused, match=r"table 20111 already holds routes of another owner \(proto static\)"):
        lab.engine.apply(b, document(lab))
    assert routing.listing(b) == before
    b.run(["ip", "route", "flush", "table", "20111"])


def test_an_identical_rule_of_another_owner_is_refused(lab, b):
    """For documents whose rules keep their priorities; those of a return path move (test_foreign_rules.py)."""
    b.run(["ip", "rule", "add", "priority", "1100", "fwmark", "11/255", "lookup", "20999", "protocol", "150"])
    before = routing.listing(b)
    with pytest.raises(errors.Refused, match=r"rule priority 1100 already has these selectors.*\(proto 150\)"):
        lab.engine.apply(b, {**document(lab), "owner": "by_hand", "protocol": 206})
    assert routing.listing(b) == before
    b.run(["ip", "rule", "del", "priority", "1100", "fwmark", "11/255", "lookup", "20999", "protocol", "150"])


# --- settings


def test_removal_restores_sysctls(lab, b):
    memory = lab.engine.directory / "b-sysctl.json"
    for name, _value in REDIRECTS:
        b.run(["sysctl", "-qw", f"{name}=1"])
    lab.engine.apply(b, document(lab, sysctls=REDIRECTS))
    assert {value_of(b, name) for name, _value in REDIRECTS} == {"0"}
    assert memory.exists()
    lab.engine.remove(b, "return_path")
    assert {value_of(b, name) for name, _value in REDIRECTS} == {"1"}
    assert not memory.exists()


@pytest.fixture
def forwarding_a(lab):
    """a forwards b's replies, out of their incoming interface, and sends redirects to the router."""
    a, router = lab["a"], lab["router"].on("inside")
    settings = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.conf.eth0.send_redirects")
    before = {name: value_of(a, name) for name in settings}
    for name in settings:
        a.run(["sysctl", "-qw", f"{name}=1"])
    for name, _value in REDIRECTS:
        lab["b"].run(["sysctl", "-qw", f"{name}=1"])
    # IPv6 redirects are sent to link-local routers only (RFC 4861, 8.2): as with a default route from an advertisement.
    a.run(["ip", "-6", "route", "replace", "default", "via", link_local(router.mac), "dev", "eth0"])
    yield a
    a.run(["ip", "-6", "route", "replace", "default", "via", router.ipv6])
    for name, value in before.items():
        a.run(["sysctl", "-qw", f"{name}={value}"])


def link_local(mac: str) -> str:
    """The address a kernel makes of a MAC (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    interface = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(ipaddress.IPv6Address(b"\xfe\x80" + b"\0" * 6 + interface))


def way(b, target: str) -> str | None:
    with b.inside():
        return kernel.route_get(target, mark=11).via


def provoke(b, target: str) -> None:
    b.run(["ping", "-m", "11", "-c", "3", "-i", "0.2", "-W", "1", target], check=False)


def test_applying_a_document_flushes_ipv4_redirects(lab, b, forwarding_a):
    """Until then b sends past a, despite all rules."""
    a, target = forwarding_a, "198.51.100.77"
    lab.engine.apply(b, return_path(a))
    assert way(b, target) == a.ipv4
    provoke(b, target)
    eventually(lambda: way(b, target) == lab["router"].on("inside").ipv4)
    lab.engine.apply(b, return_path(a, sysctls=REDIRECTS))
    assert way(b, target) == a.ipv4


def test_forget_redirects_flushes_ipv6_redirects(lab, b, forwarding_a):
    """IPv6 accepts a redirect for a link-local next hop and a socket bound to the interface (ip6_redirect_nh_match)."""
    target, via = "2001:db8:ffff::77", [link_local(host.mac) for host in (forwarding_a, lab["router"].on("inside"))]
    b.run(["ip", "-6", "route", "add", target, "via", via[0], "dev", "eth0"])
    with b.inside():
        assert kernel.route_get(target).via == via[0]
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")

            def learnt() -> bool:
                with contextlib.suppress(OSError):  # the router's "unreachable" for an earlier one
                    sender.sendto(b"x", (target, 9))
                return kernel.route_get(target).via == via[1]

            eventually(learnt)
        with kernel.Kernel() as netlink:
            netlink.forget_redirects()
        assert kernel.route_get(target).via == via[0]
    b.run(["ip", "-6", "route", "del", target])


def test_an_ipv6_redirect_does_not_override_a_global_next_hop(lab, b, forwarding_a):
    a, target = forwarding_a, "2001:db8:ffff::78"
    lab.engine.apply(b, return_path(a))
    before = snmp(b, "6", "Icmp6InRedirects")
    provoke(b, target)
    assert snmp(b, "6", "Icmp6InRedirects") > before
    assert way(b, target) == a.ipv6


# --- proxies that are not there, and the keeper


def test_a_silent_proxy_is_waited_for_and_the_rest_is_applied(lab, b):
    data = document(lab)
    data["marks"][1]["via"] = ["198.18.0.99"]
    outcome = lab.engine.apply(b, data, {"neighbour_wait": 0.1})
    assert outcome.waiting == ("waiting for 198.18.0.99 to answer: the MAC of proxy a2 is not known yet",)
    assert [mark["mac"] for mark in outcome.owned["marks"]] == [lab["a"].mac, None]
    assert not lab.engine.apply(b, data, {"neighbour_wait": 0.1}).changed


def test_a_wrong_declared_mac_is_a_warning(lab, b):
    data = return_path(lab["a"], mac=True)
    data["marks"][0]["mac"] = "02:00:00:00:00:aa"
    with b.inside(), kernel.Kernel() as netlink:
        netlink.neighbour(lab["a"].ipv4, PATIENCE)
    warning = f"proxy a is expected at 02:00:00:00:00:aa, but 198.18.0.11 is at {lab['a'].mac}"
    assert warning in lab.engine.apply(b, data).warnings


def keep(lab, b, directory, **options) -> int:
    with b.inside():
        return command.run(str(directory), host=lab.engine.host(b), **options)


def stored(directory, data: dict) -> None:
    directory.mkdir(exist_ok=True)
    document = documents.load(data)
    (directory / f"{document.owner}.json").write_text(store.content_of(document))


def test_keep_dry_run_shows_drift_and_repairs_nothing(lab, b, tmp_path):
    stored(tmp_path, document(lab))
    assert keep(lab, b, tmp_path, once=True) == 0
    assert keep(lab, b, tmp_path, dry_run=True, out=io.StringIO()) == 0
    b.run(["ip", "rule", "del", "priority", "1101", "fwmark", "11/255"])
    shown = io.StringIO()
    assert keep(lab, b, tmp_path, dry_run=True, out=shown) == 2
    assert re.fullmatch(r"return_path: add ip rule 1101: from all fwmark 0xb/0xff unreachable\n", shown.getvalue())
    assert keep(lab, b, tmp_path, once=True) == 0


def test_keep_applies_a_good_document_despite_a_bad_one(lab, b, tmp_path):
    stored(tmp_path, document(lab))
    (tmp_path / "local_delivery.json").write_text('{"schema": 1, "owner": "local_delivery", "protocol": 999}')
    assert keep(lab, b, tmp_path, once=True) == 1
    assert not lab.engine.apply(b, document(lab)).changed
