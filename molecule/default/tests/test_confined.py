# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The units' hardening: what systemd makes of it, and that it is in force."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

# CAP_NET_BIND_SERVICE is 10, CAP_NET_ADMIN 12, CAP_NET_RAW 13 (linux/capability.h).
# unit: host, most exposure (0 to 10, systemd-analyze security), capabilities
UNITS = {"l4proxy-forwarder": ("a", 1.5, {10, 13}), "l4proxy-keeper": ("b", 2.0, {12, 13})}
EACH_UNIT = pytest.mark.parametrize("unit", UNITS)


def main_pid(host, unit):
    return host.run(["systemctl", "show", "--property=MainPID", "--value", unit]).stdout.strip()


def in_mounts_of(host, pid, script):
    """Run a script as root that sees what the process of that pid sees of the file systems."""
    return host.run(["nsenter", f"--target={pid}", "--mount", "/bin/sh", "-c", script], check=False)


@EACH_UNIT
def test_little_is_exposed(lab, unit):
    host, most, _capabilities = UNITS[unit]
    said = lab[host].run(["systemd-analyze", "security", "--no-pager", unit]).stdout
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert exposure, said
    assert float(exposure[1]) <= most, said


@EACH_UNIT
def test_the_kernel_holds_the_process_to_it(lab, unit):
    host, _most, capabilities = UNITS[unit]
    status = lab[host].run(["cat", f"/proc/{main_pid(lab[host], unit)}/status"]).stdout
    found = dict(line.split(":\t", 1) for line in status.splitlines())
    assert int(found["CapEff"], 16) == int(found["CapBnd"], 16) == sum(1 << number for number in capabilities)
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")


def test_the_forwarder_is_nobody_else(lab):
    status = lab["a"].run(["cat", f"/proc/{main_pid(lab['a'], 'l4proxy-forwarder')}/status"]).stdout
    uid = lab["a"].run(["id", "-u", "l4proxy"]).stdout.strip()
    assert uid != "0"
    assert re.search(rf"^Uid:\s+{uid}\s+{uid}\s", status, re.MULTILINE)


READ_ONLY = ["/etc/l4proxy/written", "/usr/local/bin/written"]


@EACH_UNIT
@pytest.mark.parametrize("path", READ_ONLY)
def test_it_cannot_write_where_it_has_no_business(lab, unit, path):
    host = lab[UNITS[unit][0]]
    refused = in_mounts_of(host, main_pid(host, unit), f"echo 4 > {path}")
    assert refused.returncode != 0
    assert "Read-only file system" in refused.stderr
    # The control: the host itself can.
    assert in_mounts_of(host, 1, f"echo 4 > {path} && rm {path}").returncode == 0


def test_the_keeper_can_write_the_settings_it_keeps_and_no_others(lab):
    pid = main_pid(lab["b"], "l4proxy-keeper")
    written = in_mounts_of(lab["b"], pid, "echo 0 > /proc/sys/net/ipv4/conf/eth0/accept_redirects")
    assert written.returncode == 0, written.stderr
    refused = in_mounts_of(lab["b"], pid, "echo 4 > /proc/sys/kernel/printk")
    assert "Read-only file system" in refused.stderr


PROBE = Path(__file__).with_name("confined_probe.py")
ARCHIVE = "/usr/local/bin/l4proxy"
#: What is of the forwarder and not of its confinement.
OURS = re.compile(
    r"^(Type|NotifyAccess|Exec\w+|Restart\w*|RuntimeDirectory\w*|KillMode|TimeoutStopSec)=.*\n", re.MULTILINE
)


def try_everything(host, service):
    """Run the probe as a service with these settings; returns (what the forwarder needs, {what: outcome})."""
    host.run(["tee", "/var/lib/l4proxy-probe.py"], input=PROBE.read_text(encoding="utf-8"))
    exec_start = f"Type=oneshot\nExecStart=/usr/bin/python3 -I /var/lib/l4proxy-probe.py {ARCHIVE}\n"
    unit = service.replace("[Service]\n", f"[Service]\n{exec_start}")
    host.run(["tee", "/run/systemd/system/l4proxy-probe.service"], input=unit)
    host.run(["systemctl", "daemon-reload"])
    since = host.run(["date", "+%s.%N"]).stdout.strip()
    host.run(["systemctl", "start", "l4proxy-probe"])
    journal = ["journalctl", "--unit=l4proxy-probe", "--output=cat", "--no-pager", f"--since=@{since}"]
    said = host.run(journal).stdout
    told = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    return set(told["may"]), told["outcomes"]


@pytest.fixture
def probing(lab):
    yield lab["a"]
    files = ["/var/lib/l4proxy-probe.py", "/run/systemd/system/l4proxy-probe.service"]
    lab["a"].run(["rm", "--force", *files, "/tmp/set-user-id", "/etc/l4proxy/written"])
    lab["a"].run(["systemctl", "daemon-reload"])


def test_the_forwarders_user_can_do_what_it_needs_and_nothing_else(probing):
    unit = probing.run(["cat", "/etc/systemd/system/l4proxy-forwarder.service"]).stdout
    may, outcomes = try_everything(probing, OURS.sub("", unit))
    assert {what for what, outcome in outcomes.items() if outcome == "done"} == may, outcomes
    # The control: without the unit's confinement it could.
    _may, free = try_everything(probing, "[Service]\nLimitNOFILE=65536\nPrivateMounts=true\n")
    assert {what: outcome for what, outcome in free.items() if outcome != "done"} == {}


def test_journald_drops_no_line_of_the_forwarder(lab):
    """By default it does so above 10,000 in 30 s, or a few times that on a large disk; a connection is a line."""
    unit = lab["a"].run(["systemctl", "cat", "l4proxy-forwarder"]).stdout
    limits = [f"--property={line}" for line in unit.splitlines() if line.startswith("LogRateLimit")]
    count = {}
    for name, settings in (("kept", limits), ("control", [])):
        run = ["systemd-run", "--quiet", "--wait", f"--unit=lines-{name}", *settings]
        lab["a"].run([*run, "sh", "-c", "seq 1 120000"])
        lab["a"].run(["journalctl", "--sync"])
        shown = lab["a"].run(["journalctl", "--unit", f"lines-{name}", "--output=cat"]).stdout
        count[name] = sum(line.isdigit() for line in shown.splitlines())
    assert count["kept"] == 120_000
    assert count["control"] < 120_000, "nothing is dropped here at all"
