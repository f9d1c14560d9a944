# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hardening of the units: how systemd rates it, and that the kernel enforces it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

# CAP_NET_BIND_SERVICE is 10, CAP_NET_ADMIN 12, CAP_NET_RAW 13 (linux/capability.h).
# unit: host, maximum exposure (0 to 10, systemd-analyze security), capabilities
UNITS = {"l4proxy-forwarder": ("a", 1.5, {10, 13}), "l4proxy-keeper": ("b", 2.0, {12, 13})}
EACH_UNIT = pytest.mark.parametrize("unit", UNITS)


def main_pid(host, unit):
    return host.run(["systemctl", "show", "--property=MainPID", "--value", unit]).stdout.strip()


def in_mounts_of(host, pid, script):
    """Run a script as root in the mount namespace of the process ``pid``."""
    return host.run(["nsenter", f"--target={pid}", "--mount", "/bin/sh", "-c", script], check=False)


@EACH_UNIT
def test_systemd_rates_the_unit_as_hardened(lab, unit):
    host, most, _capabilities = UNITS[unit]
    report = lab[host].run(["systemd-analyze", "security", "--no-pager", unit]).stdout
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", report)
    assert exposure, report
    assert float(exposure[1]) <= most, report


@EACH_UNIT
def test_the_process_has_only_the_capabilities_of_its_unit(lab, unit):
    host, _most, capabilities = UNITS[unit]
    status = lab[host].run(["cat", f"/proc/{main_pid(lab[host], unit)}/status"]).stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == sum(1 << number for number in capabilities)
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


def test_the_forwarder_runs_as_its_own_account(lab):
    status = lab["a"].run(["cat", f"/proc/{main_pid(lab['a'], 'l4proxy-forwarder')}/status"]).stdout
    uid = lab["a"].run(["id", "-u", "l4proxy"]).stdout.strip()
    assert uid != "0"
    assert re.search(rf"^Uid:\s+{uid}\s+{uid}\s", status, re.MULTILINE)


READ_ONLY = ["/etc/l4proxy/written", "/usr/local/bin/written"]


@EACH_UNIT
@pytest.mark.parametrize("path", READ_ONLY)
def test_the_unit_cannot_write_to_system_directories(lab, unit, path):
    host = lab[UNITS[unit][0]]
    refused = in_mounts_of(host, main_pid(host, unit), f"echo 4 > {path}")
    assert refused.returncode != 0
    assert "Read-only file system" in refused.stderr
    # Control: the host itself can write there.
    assert in_mounts_of(host, 1, f"echo 4 > {path} && rm {path}").returncode == 0


def test_the_keeper_can_write_only_network_sysctls(lab):
    pid = main_pid(lab["b"], "l4proxy-keeper")
    written = in_mounts_of(lab["b"], pid, "echo 0 > /proc/sys/net/ipv4/conf/eth0/accept_redirects")
    assert written.returncode == 0, written.stderr
    refused = in_mounts_of(lab["b"], pid, "echo 4 > /proc/sys/kernel/printk")
    assert "Read-only file system" in refused.stderr


PROBE = Path(__file__).with_name("confined_probe.py")
ARCHIVE = "/usr/local/bin/l4proxy"
#: Lines of the unit that start the forwarder and do not confine it.
START_LINES = re.compile(
    r"^(Type|NotifyAccess|Exec\w+|Restart\w*|RuntimeDirectory\w*|KillMode|TimeoutStopSec)=.*\n", re.MULTILINE
)


def try_everything(host, service):
    """Run the probe as a service with these settings; return (actions that the forwarder needs, {action: outcome})."""
    host.run(["tee", "/var/lib/l4proxy-probe.py"], input=PROBE.read_text(encoding="utf-8"))
    exec_start = f"Type=oneshot\nExecStart=/usr/bin/python3 -I /var/lib/l4proxy-probe.py {ARCHIVE}\n"
    unit = service.replace("[Service]\n", f"[Service]\n{exec_start}")
    host.run(["tee", "/run/systemd/system/l4proxy-probe.service"], input=unit)
    host.run(["systemctl", "daemon-reload"])
    since = host.run(["date", "+%s.%N"]).stdout.strip()
    host.run(["systemctl", "start", "l4proxy-probe"])
    journal = ["journalctl", "--unit=l4proxy-probe", "--output=cat", "--no-pager", f"--since=@{since}"]
    lines = host.run(journal).stdout.splitlines()
    report = json.loads(next(line for line in lines if line.startswith("{")))
    return set(report["allowed"]), report["outcomes"]


@pytest.fixture
def probe_host(lab):
    yield lab["a"]
    files = ["/var/lib/l4proxy-probe.py", "/run/systemd/system/l4proxy-probe.service"]
    lab["a"].run(["rm", "--force", *files, "/tmp/set-user-id", "/etc/l4proxy/written"])
    lab["a"].run(["systemctl", "daemon-reload"])


def test_the_forwarders_unit_permits_only_the_actions_it_needs(probe_host):
    path = "/etc/systemd/system/l4proxy-forwarder.service"
    unit, drop_in = (probe_host.run(["cat", name]).stdout for name in (path, f"{path}.d/50-l4proxy-health.conf"))
    more = drop_in.partition("[Service]\n")[2]
    settings = START_LINES.sub("", unit.replace("[Service]\n", f"[Service]\n{more}"))
    allowed, outcomes = try_everything(probe_host, settings)
    assert {action for action, outcome in outcomes.items() if outcome == "done"} == allowed, outcomes
    # Control: without the unit's confinement, every action succeeds.
    _allowed, unconfined = try_everything(probe_host, "[Service]\nLimitNOFILE=65536\nPrivateMounts=true\n")
    assert {action: outcome for action, outcome in unconfined.items() if outcome != "done"} == {}


def test_journald_drops_no_line_of_the_forwarder(lab):
    """By default, it drops lines above 10,000 in 30 s (more on a large disk), and each connection is one line."""
    unit = lab["a"].run(["systemctl", "cat", "l4proxy-forwarder"]).stdout
    limits = [f"--property={line}" for line in unit.splitlines() if line.startswith("LogRateLimit")]
    count = {}
    for name, settings in (("kept", limits), ("control", [])):
        run = ["systemd-run", "--quiet", "--wait", f"--unit=lines-{name}", *settings]
        # The process waits, because journald finds the limits of its unit only while it runs.
        lab["a"].run([*run, "sh", "-c", "seq 1 120000; sleep 2"])
        lab["a"].run(["journalctl", "--sync"])
        shown = lab["a"].run(["journalctl", "--unit", f"lines-{name}", "--output=cat"]).stdout
        count[name] = sum(line.isdigit() for line in shown.splitlines())
    assert count["kept"] == 120_000
    assert count["control"] < 120_000, "control: journald drops lines without the setting"
