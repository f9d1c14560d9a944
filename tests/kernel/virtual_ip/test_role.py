# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role virtual_ip on a host that may have a keepalived of its own: the real keepalived, started by a script in
place of systemctl. With systemd: molecule/first_tier.
"""

from __future__ import annotations

import json
import os
import re
import sys

import pytest
import yaml

from tests.docs import examples
from tests.docs.sandbox import Sandbox
from tests.lab.netns import NamespaceLab
from tests.support.waiting import eventually
from tests.unit.plugins.plugin_utils.fleet_data import BOTH, WEB, view

SYSTEMCTL = r"""#!/bin/sh
running() { kill -0 "$(cat /run/keepalived.pid 2>/dev/null)" 2>/dev/null; }
case $1 in show | is-enabled) ;; *) echo "$1" >> /run/systemctl.log ;; esac
case $1 in
    show) echo LoadState=loaded; running && echo ActiveState=active || echo ActiveState=inactive ;;
    is-enabled) test -e /etc/keepalived-enabled && echo enabled || exit 1 ;;
    enable) touch /etc/keepalived-enabled ;;
    disable) rm -f /etc/keepalived-enabled ;;
    start) keepalived --vrrp --dont-fork --log-console > /run/keepalived.log 2>&1 & sleep 0.5 ;;
    stop) kill "$(cat /run/keepalived.pid)"; while running; do sleep 0.1; done ;;
    reload) kill -HUP "$(cat /run/keepalived.pid)" ;;
esac
"""
VIRTUAL = ["198.18.0.100", "2001:db8::100"]
INVENTORY = {
    "all": {
        "vars": {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "virtual_ip_manage_packages": False,
            "l4proxy_services": [WEB],
            "l4proxy_virtual_ips": [{"name": "web", "addresses": VIRTUAL, "proxies": ["a", "a2"]}],
            "__l4proxy_fleet": {**view("a", **BOTH), "known": {"virtual_ip": None}, "reachable": True},
        },
        "hosts": {
            "a": None,
            "a2": {"l4proxy_address": ["198.18.0.12/24", "2001:db8::12/64"]},
            **dict.fromkeys("bcd"),
        },
    }
}
PLAY = [{"hosts": "a", "gather_facts": True, "roles": ["trueip.l4proxy.virtual_ip"]}]
OTHERS = """global_defs {{
    router_id mine
}}
vrrp_instance {name} {{
    interface eth0
    virtual_router_id 33
    priority 200
    virtual_ipaddress {{
        198.18.0.199
    }}
}}
"""
MAIN = "/etc/keepalived/keepalived.conf"


@pytest.fixture
def host():
    with NamespaceLab(f"vr{os.getpid()}", ["a"]) as lab:
        host = Sandbox(lab, "a")
        host.write("/usr/local/bin/systemctl", SYSTEMCTL, "0755")
        host.write("/usr/local/bin/l4proxy", "#!/bin/sh\nexit 0\n", "0755")
        host.run(["mkdir", "-p", "/etc/l4proxy"])
        yield host


@pytest.fixture
def play(host, tmp_path):
    def run(*arguments, **variables):
        for name, data in (("inventory.yml", INVENTORY), ("play.yml", PLAY)):
            (tmp_path / name).write_text(yaml.safe_dump(data), encoding="utf-8")
        command = [sys.executable, "-m", "ansible", "playbook", "--inventory", str(tmp_path / "inventory.yml")]
        extra = ["-e", json.dumps(variables)]
        env = {**examples.collections_environment(tmp_path / "home"), "PATH": f"/usr/local/bin:{os.environ['PATH']}"}
        done = host.run([*command, *arguments, *extra, str(tmp_path / "play.yml")], env=env, check=False, timeout=120)
        changed = re.search(r"changed=(\d+)", done.stdout)
        return done.returncode, int(changed[1]) if changed else None, " ".join(done.stdout.split())

    return run


def files(host):
    return host.run(
        ["find", "/etc/keepalived", "/etc/l4proxy", "/etc/keepalived-enabled", "/etc/systemd/system", "-ls"],
        check=False,
    ).stdout


def addresses(host):
    return re.findall(r"inet6? ([^ /]+)/(?:32|128) ", host.run(["ip", "-o", "address", "show", "eth0"]).stdout)


def commands(host):
    """What was asked of systemctl since the last call."""
    return host.run(["sh", "-c", "cat /run/systemctl.log; : > /run/systemctl.log"], check=False).stdout.split()


@pytest.mark.slow
def test_deploy_check_repeat_reload_and_remove(host, play):
    fresh = files(host)
    status, changed, output = play("--check", "--diff")
    assert (status, files(host), addresses(host)) == (0, fresh, []), output
    assert changed
    assert "+ virtual_router_id 105" in output
    assert play()[0] == 0
    assert sorted(addresses(host)) == VIRTUAL
    assert sorted(commands(host)) == ["daemon-reload", "enable", "start"]
    assert play()[1] == 0
    assert commands(host) == []
    assert play("--check", virtual_ip_hold_time=20)[:2] == (0, 2)
    assert commands(host) == []
    assert play(virtual_ip_hold_time=20)[:2] == (0, 2)
    assert commands(host) == ["reload"]
    # An interrupted run: the config is installed, and not loaded.
    host.write("/run/l4proxy-virtual-ip-reload", "")
    assert play(virtual_ip_hold_time=20)[:2] == (0, 1)
    assert commands(host) == ["reload"]
    assert sorted(addresses(host)) == VIRTUAL
    assert play(virtual_ip_state="absent")[0] == 0
    assert sorted(commands(host)) == ["daemon-reload", "disable", "stop"]
    assert (files(host).count("\n"), addresses(host)) == (fresh.count("\n"), [])
    assert play(virtual_ip_state="absent")[:2] == (0, 0)


@pytest.mark.slow
def test_a_keepalived_of_others_goes_on_before_during_and_after(host, play):
    host.write(MAIN, OTHERS.format(name="mine"))
    host.run(["systemctl", "start"])
    eventually(lambda: addresses(host) == ["198.18.0.199"])
    before = files(host)
    status, _changed, output = play()
    assert (status, files(host)) == (2, before)
    assert f"Nothing was changed. Add this line to {MAIN}: include /etc/keepalived/conf.d/*.conf" in output
    # One name twice on this host.
    host.write(MAIN, OTHERS.format(name="l4proxy_web_ipv4") + "include conf.d/*.conf\n")
    status, _changed, output = play()
    assert status == 2
    assert "keepalived would not accept our config together with the others" in output
    assert "vrrp instance l4proxy_web_ipv4 already defined" in output
    assert host.run(["ls", "/etc/keepalived/conf.d"]).stdout == ""
    host.write(MAIN, OTHERS.format(name="mine") + "include conf.d/*.conf\n")
    assert play()[0] == 0
    assert sorted(addresses(host)) == [VIRTUAL[0], "198.18.0.199", VIRTUAL[1]]
    commands(host)
    assert play(virtual_ip_state="absent")[0] == 0
    assert commands(host) == ["reload"]
    eventually(lambda: addresses(host) == ["198.18.0.199"])
    assert host.read(MAIN).startswith("global_defs {\n    router_id mine")


def test_a_package_that_no_source_has_is_refused(host, play):
    before = files(host)
    status, _changed, output = play(virtual_ip_manage_packages=True, virtual_ip_packages=["keepalived-of-mars"])
    assert (status, files(host)) == (2, before)
    assert "keepalived-of-mars cannot be installed: " in output
    assert "Nothing was changed. Give the host a package source that has it" in output
