# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What `site` refuses before it changes anything on any host, with the real engines on fresh hosts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.first_tier.fleet import Fleet
from tests.lab import listing
from tests.lab.containers import ContainerLab
from tests.walk.fleet import WEB_SERVERS

HOSTS = ("client", "router", "a", "a2", "b")
INSTALL = "DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends {} >/dev/null 2>&1"
#: apt on a host whose sources have no such package; the hosts' only source is a directory.
WITHOUT = "sed -i.lab '/^Package: {0}$/,/^$/d' /var/lib/l4proxy-lab/packages/Packages; apt-get update >/dev/null"
FOREIGN_VRRP = """vrrp_instance theirs {
  version 3
  interface eth1
  virtual_router_id 100
  advert_int 0.2
  priority 10
  virtual_ipaddress {
    198.18.0.200/24
  }
}
"""
OTHER_KEEPALIVED = "printf 'global_defs {\\n}\\n' > /etc/keepalived/keepalived.conf"
OTHER_FRR = "printf 'router bgp 64999\\n' > /etc/frr/frr.conf; sed -i s/^bgpd=no/bgpd=yes/ /etc/frr/daemons"


@dataclass(frozen=True)
class Refusal:
    """``harm`` prepares hosts; ``change`` edits the variables; the output has all of ``says``."""

    name: str
    says: tuple[str, ...]
    harm: Callable[[Fleet], object] = lambda fleet: None
    change: Callable[[dict], object] = lambda variables: None


def foreign_vrrp(fleet: Fleet) -> None:
    path = fleet.directory / "keepalived.conf"
    path.write_text(FOREIGN_VRRP, encoding="ascii")
    pids = [part for kind in "pcr" for part in (f"-{kind}", str(fleet.directory / f"{kind}.pid"))]
    fleet.others = fleet.lab["router"].spawn(["keepalived", "--dont-fork", "--log-console", "-f", str(path), *pids])


def second_virtual_ip(variables: dict) -> None:
    first = variables["l4proxy_virtual_ips"][0]
    variables["l4proxy_virtual_ips"].append({**first, "name": "again", "vrid": 7})


REFUSALS = [
    Refusal("two virtual IPs with one address", ("198.18.0.100", "l4proxy_virtual_ips[1]"), change=second_virtual_ip),
    Refusal("a vrid that another router uses on the link", ("vrid", "100", "198.18.0.1"), foreign_vrrp),
    Refusal(
        "keepalived cannot be installed",
        ("a2: keepalived cannot be installed", "virtual_ip_manage_packages"),
        lambda fleet: fleet.sh("a2", WITHOUT.format("keepalived")),
    ),
    Refusal(
        "FRR cannot be installed",
        ("a2: frr", "cannot be installed", "announce_manage_packages"),
        lambda fleet: fleet.sh("a2", WITHOUT.format("frr")),
    ),
    Refusal(
        "a config of keepalived that is not ours",
        ("a2 has a config of keepalived", "include"),
        lambda fleet: fleet.sh("a2", f"{INSTALL.format('keepalived')}; {OTHER_KEEPALIVED}"),
    ),
    Refusal(
        "BGP of others in FRR",
        ("a2", "router bgp", "engine: none"),
        lambda fleet: fleet.sh("a2", f"{INSTALL.format('frr')}; {OTHER_FRR}"),
    ),
]


@pytest.fixture
def fleet(tmp_path):
    """Fresh hosts, of which nothing is deployed yet: a and a2 are proxies, b is a backend."""
    with ContainerLab(f"deny{os.getpid()}", HOSTS) as lab:
        raised = Fleet(lab, tmp_path, proxies=("a", "a2"), backends=("b",))
        raised.others = None
        yield raised
        if raised.others:
            raised.others.terminate()
            raised.others.wait()


@pytest.mark.parametrize("row", REFUSALS, ids=[row.name for row in REFUSALS])
def test_refused_before_any_host_is_changed(fleet, row):
    row.change(fleet.variables)
    row.harm(fleet)
    before = {name: listing.take(fleet.lab[name], packages=True) for name in fleet.lab.managed}
    run = fleet.play("site", works=False)
    for part in row.says:
        assert part in " ".join(run.output.split()), run.output[-4000:]
    after = {name: listing.take(fleet.lab[name], packages=True) for name in fleet.lab.managed}
    found = {name: listing.differences(before[name], after[name]) for name in before}
    assert not any(found.values()), found


def test_a_peer_that_refuses_is_named(fleet):
    """No router speaks BGP: all is deployed and serves, and the last message says which peer does not answer."""
    del fleet.variables["l4proxy_virtual_ips"]
    fleet.play(str(WEB_SERVERS))
    said = fleet.play("site", works=False).output.rpartition("TASK [Show which hosts are behind")[2]
    assert "a failed: Verify that each family has a session: a has no BGP session with 198.18.0.1 (AS 65000)" in said, (
        said
    )
    for address in (fleet.lab["a"].ipv4, f"[{fleet.lab['a'].ipv6}]"):
        fleet.lab["client"].run(["curl", "--silent", "--fail", f"http://{address}/"])
