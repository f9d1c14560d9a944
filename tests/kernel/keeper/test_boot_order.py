# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The order of the keeper's unit at boot: before the network, also if cloud-init makes sysinit wait for the network.

systemd breaks a cycle by dropping a unit of its choice, which may be the network.
"""

from __future__ import annotations

import os
import re
import subprocess

import jinja2

from tests.lab.ansible import REPOSITORY

TEMPLATE = REPOSITORY / "roles" / "keeper" / "templates" / "l4proxy-keeper.service.j2"
SERVICE = "[Service]\nType=oneshot\nExecStart=/bin/true\n"
# The ordering of Debian's ifupdown and cloud-init.
UNITS = {
    "networking.service": "[Unit]\nDefaultDependencies=no\nAfter=network-pre.target\nBefore=network.target\n" + SERVICE,
    "cloud-init.service": "[Unit]\nDefaultDependencies=no\nRequires=networking.service\nAfter=networking.service\n"
    "Before=sysinit.target\n" + SERVICE,
    "all.target": "[Unit]\nRequires=sysinit.target cloud-init.service l4proxy-keeper.service\nAfter=sysinit.target\n",
}


def unit() -> str:
    environment = jinja2.Environment(autoescape=False)
    environment.filters["comment"] = lambda text: f"# {text}"
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(ansible_managed="ours", _keeper_command="/bin/true")


def verdict(directory, keeper: str) -> str:
    """The output of systemd-analyze verify for a boot with these units."""
    for name, content in {**UNITS, "l4proxy-keeper.service": keeper}.items():
        (directory / name).write_text(content, encoding="utf-8")
    command = ["systemd-analyze", "verify", "--man=no", str(directory / "all.target")]
    path = {"SYSTEMD_UNIT_PATH": f"{directory}:/lib/systemd/system"}
    done = subprocess.run(command, env={**os.environ, **path}, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_systemd_finds_no_cycle_with_the_keeper_before_the_network(tmp_path):
    assert verdict(tmp_path, unit()) == ""


def test_with_default_dependencies_there_is_a_cycle(tmp_path):
    assert "ordering cycle" in verdict(tmp_path, unit().replace("DefaultDependencies=no\n", ""))


def test_the_keeper_starts_before_the_network_and_after_firewalls():
    before, after = (
        " ".join(re.findall(f"^{word}=(.*)$", unit(), re.MULTILINE)).split() for word in ("Before", "After")
    )
    assert "network-pre.target" in before
    assert {"nftables.service", "netfilter-persistent.service", "ufw.service"} <= set(after)
