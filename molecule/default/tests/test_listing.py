# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Full listings of the hosts: when fresh, after check mode, and after the teardown."""

from __future__ import annotations

import json

from tests.lab import listing


def listings(lab, *, packages):
    return {name: listing.take(lab[name], packages=packages) for name in lab.managed}


def differences(before, after):
    return [f"{name}: {line}" for name in before for line in listing.differences(before[name], after[name])]


def test_list_the_fresh_hosts(lab, scratch):
    for packages in (True, False):
        fresh = listings(lab, packages=packages)
        for name in lab.managed:
            assert len(fresh[name]["sysctls"]) > 300, fresh[name]["sysctls"]
            assert len(fresh[name]["contents"]) > 100, fresh[name]["contents"]
        (scratch / f"fresh-{packages}.json").write_text(json.dumps(fresh), encoding="utf-8")


def test_check_mode_changed_nothing(lab, scratch):
    before = json.loads((scratch / "fresh-True.json").read_text(encoding="utf-8"))
    assert differences(before, listings(lab, packages=True)) == []


def test_a_listing_shows_everything_that_a_role_could_leave_behind(lab):
    # Control: each section of a listing notices a change of its kind.
    host = lab["c"]
    before = listing.take(host, packages=False)
    traces = {
        "rules": ("ip rule add pref 1 from 192.0.2.1 lookup 7", "ip rule del pref 1"),
        "routes": ("ip route add blackhole 192.0.2.1 table 7", "ip route del blackhole 192.0.2.1 table 7"),
        "nftables": ("nft add table inet trace", "nft delete table inet trace"),
        "sysctls": ("sysctl -w net.ipv4.conf.eth0.send_redirects=0", "sysctl -w net.ipv4.conf.eth0.send_redirects=1"),
        "accounts": ("useradd trace", "userdel trace"),
        "files": ("mkdir /etc/trace", "rmdir /etc/trace"),
        "contents": ("touch /usr/local/trace", "rm /usr/local/trace"),
        "runtime": ("touch /run/trace", "rm /run/trace"),
    }
    for create, _remove in traces.values():
        host.run(["sh", "-c", create])
    after = listing.take(host, packages=False)
    for _create, remove in traces.values():
        host.run(["sh", "-c", remove])
    assert {line.split(":")[0] for line in listing.differences(before, after)} >= set(traces)
    assert listing.differences(before, listing.take(host, packages=False)) == []


def test_teardown_leaves_the_hosts_as_they_were(lab, play, scratch):
    run = play("teardown")
    assert run.status == 0, run.output
    assert set(run.changed) == set(lab.managed), run.output
    assert "These packages stay, because others may need them: python3, python3-pyroute2" in run.output
    before = json.loads((scratch / "fresh-False.json").read_text(encoding="utf-8"))
    assert differences(before, listings(lab, packages=False)) == []
    assert play("teardown").changed == {}
