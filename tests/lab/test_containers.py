# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The container lab itself: hosts that boot, reboot, lose power, install packages, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import podman, wiring
from tests.lab.containers import STATE, ContainerLab
from tests.lab.netns import REPOSITORY, LabError

PREFIX = f"kc{os.getpid()}"


@pytest.fixture(scope="module")
def lab():
    with ContainerLab(PREFIX, ["client", "router", "a", "b"]) as raised:
        yield raised


def ansible(*args: str) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "ANSIBLE_CONNECTION_PLUGINS": str(REPOSITORY / "tests/lab/connection_plugins"),
        "L4PROXY_LAB_PREFIX": PREFIX,
    }
    inventory = ["-i", str(REPOSITORY / "tests/lab/inventory/hosts.yml"), "-i", "a,b,c,d"]
    command = [str(Path(sys.executable).with_name("ansible")), *inventory]
    return subprocess.run(
        [*command, *args], env=environment, cwd=REPOSITORY, text=True, capture_output=True, timeout=120, check=False
    )


@pytest.mark.parametrize(("family", "target"), [("-4", "198.18.0.21"), ("-6", "2001:db8::21")])
def test_the_client_reaches_a_booted_host(lab, family, target):
    lab["client"].run(["ping", family, "-c1", "-W10", target])


@pytest.mark.parametrize(("host", "release"), [("a", "bookworm"), ("b", "trixie")])
def test_hosts_are_the_release_the_topology_says(lab, host, release):
    assert f"VERSION_CODENAME={release}" in lab[host].run(["cat", "/etc/os-release"]).stdout
    assert lab[host].run(["systemctl", "is-system-running"]).stdout == "running\n"


def test_pyroute2_is_absent_and_installs_without_a_mirror(lab):
    assert lab["b"].run(["python3", "-c", "import pyroute2"], check=False).returncode
    check = ansible("b", "--check", "-m", "package", "-a", "name=python3-pyroute2 update_cache=false")
    assert "b | CHANGED" in check.stdout, check.stdout + check.stderr
    lab["b"].run(["apt-get", "install", "--yes", "python3-pyroute2"], timeout=120)
    lab["b"].run(["python3", "-c", "import pyroute2"])


def test_the_hardening_of_a_unit_is_enforced(lab):
    hardened = ["systemd-run", "--quiet", "--wait", "--pipe", "-p", "ProtectSystem=strict", "-p", "PrivateTmp=yes"]
    assert lab["a"].run([*hardened, "touch", "/tmp/x"]).returncode == 0
    assert "Read-only file system" in lab["a"].run([*hardened, "touch", "/etc/x"], check=False).stderr
    assert not lab["a"].run(["ls", "/tmp/x"], check=False).stdout


def test_a_reboot_is_a_new_network_namespace_with_the_old_disk(lab):
    lab["b"].run(["ip", "rule", "add", "pref", "4242", "lookup", "main"])
    lab["b"].run(["touch", "/root/kept"])
    before = lab["b"].run(["readlink", "/proc/self/ns/net"]).stdout
    lab.restart("b")
    assert lab["b"].run(["readlink", "/proc/self/ns/net"]).stdout != before
    assert "4242" not in lab["b"].run(["ip", "rule"]).stdout
    lab["b"].run(["ls", "/root/kept"])
    lab["client"].run(["ping", "-c1", "-W10", lab["b"].ipv4])


def test_a_host_without_power_is_unreachable_not_failed(lab):
    lab.stop("b")
    try:
        assert lab.status() == {"client": "up", "router": "up", "a": "up", "b": "off"}
        with pytest.raises(LabError, match="b is powered off"):
            lab["b"].run(["true"])
        pinged = ansible("a,b", "-m", "ansible.builtin.ping").stdout
        assert "a | SUCCESS" in pinged
        assert "b | UNREACHABLE!" in pinged
    finally:
        lab.start("b")
    assert "b | SUCCESS" in ansible("b", "-m", "ansible.builtin.ping").stdout


def test_a_failing_task_is_failed_not_unreachable(lab):
    assert "a | FAILED" in ansible("a", "-m", "ansible.builtin.command", "-a", "false").stdout


def test_a_host_goes_down_in_the_middle_of_a_task(lab):
    command = [*lab["b"].argv(["sleep", "1000"])]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as task:
        lab.stop("b")
        assert task.wait(20) != 0
    lab.start("b")


def test_down_from_elsewhere_leaves_nothing():
    prefix = f"{PREFIX}x"
    ContainerLab(prefix, ["router", "a"]).up()
    assert podman.containers(prefix)
    subprocess.run([sys.executable, "-m", "tests.lab", "down", "--prefix", prefix], cwd=REPOSITORY, check=True)
    assert not podman.containers(prefix)
    assert not wiring.namespaces(prefix)
    assert not (STATE / prefix).exists()
    ContainerLab(prefix, []).down()  # what is gone already is no error
