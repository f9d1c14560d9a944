# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The container lab itself: hosts that boot, reboot, lose power, install packages, and leave nothing behind."""

from __future__ import annotations

import ast
import base64
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jinja2
import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _archive

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
def test_hosts_run_the_release_of_the_topology(lab, host, release):
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


# 100 clients of as many ports, repeatedly; prints the number of served ones, and the errors of others.
CLIENTS = """
import collections, socket, sys, threading, time
end, told = time.monotonic() + float(sys.argv[1]), collections.Counter()
def ask(port):
    while time.monotonic() < end:
        try:
            with socket.create_connection(("198.18.0.11", port), timeout=30) as sock:
                sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
                data = b""
                while part := sock.recv(65536):
                    data += part
            told["served" if b"200 OK" in data else "cut short"] += 1
        except OSError as error:
            told[type(error).__name__] += 1
threads = [threading.Thread(target=ask, args=(port,)) for port in range(10000, 11000, 10)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(dict(told))
"""


# Python's default backlog is 5, and a starting proxy gets all waiting connections at once.
SERVER = """
import http.server as http
http.ThreadingHTTPServer.request_queue_size = 1024
http.test(http.SimpleHTTPRequestHandler, http.ThreadingHTTPServer, port=8080, bind="0.0.0.0")
"""


@pytest.fixture(scope="module")
def many_ports(lab):
    """A forwarder on a with our unit, 1,000 ports and 2 workers. Clients are on a too, so no routing is needed."""
    service = {
        "name": "many",
        "listen": [{"address": "0.0.0.0", "port": "10000-10999"}],
        "backends": [{"name": "b", "ipv4": lab["b"].ipv4, "port": 8080}],
        "source_fallback": "own",
        "connect_timeout": 10,
        "connect_deadline": 30,
        "health": {"enabled": False},
        "log": "none",
    }
    document = {"schema": 1, "proxy_id": 11, "workers": 2, "services": [service]}
    source = (REPOSITORY / "roles/forwarder/templates/l4proxy-forwarder.service.j2").read_text(encoding="utf-8")
    # A variable that the template needs and that is not here is an error, also where jinja2 would print nothing.
    template = jinja2.Template(source.replace("{{ ansible_managed | comment }}", ""), undefined=jinja2.StrictUndefined)
    unit = template.render(
        forwarder_user="forwarder",
        forwarder_nofile=16384,
        _forwarder_stop_timeout=5,
        forwarder_admin_group="",
        _keeper_command="/usr/bin/python3 /opt/l4proxy.pyz",
        _forwarder_config_path="/etc/forwarder.json",
    )
    archive = base64.b64encode(_archive.archive(_archive.sources(REPOSITORY))).decode()
    a = lab["a"]
    a.run(["sh", "-c", "base64 -d > /opt/l4proxy.pyz; useradd --system forwarder"], input=archive)
    a.run(["tee", "/etc/forwarder.json"], input=json.dumps(document))
    a.run(["tee", "/etc/systemd/system/l4proxy-forwarder.service"], input=unit)
    lab["b"].run(["systemd-run", "--working-directory=/srv", "python3", "-c", SERVER])
    a.run(["systemctl", "daemon-reload"])
    yield a
    a.run(["systemctl", "stop", "l4proxy-forwarder"], timeout=90)
    a.run(["rm", "/etc/systemd/system/l4proxy-forwarder.service"])
    a.run(["systemctl", "daemon-reload"])


def kept(host) -> int:
    return int(host.run(["systemctl", "show", "--value", "-p", "NFileDescriptorStore", "l4proxy-forwarder"]).stdout)


@pytest.mark.parametrize("store", [4096, 100])
def test_systemd_keeps_2000_listening_sockets_over_a_killed_supervisor(many_ports, store):
    """The control: if systemd keeps few sockets, many clients are refused."""
    unit = "l4proxy-forwarder"
    many_ports.run(["systemctl", "stop", unit], check=False, timeout=90)
    many_ports.run(
        [
            "sed",
            "-i",
            f"s/^FileDescriptorStoreMax=.*/FileDescriptorStoreMax={store}/",
            f"/etc/systemd/system/{unit}.service",
        ]
    )
    many_ports.run(["systemctl", "daemon-reload"])
    many_ports.run(["systemctl", "start", unit], timeout=90)  # until READY
    deadline = time.monotonic() + 60
    while kept(many_ports) < min(store, 2000):
        assert time.monotonic() < deadline, kept(many_ports)
        time.sleep(0.2)
    ends = [["systemctl", "kill", "--kill-who=main", "-s", "KILL", unit], ["systemctl", "restart", unit]]
    for end in ends if store > 2000 else ends[:1]:
        with ThreadPoolExecutor() as pool:
            clients = pool.submit(many_ports.run, ["python3", "-c", CLIENTS, "6"], timeout=120)
            time.sleep(2)
            many_ports.run(end, timeout=90)
            told = ast.literal_eval(clients.result().stdout)
        assert told["served"] > 100
        assert (set(told) == {"served"}) == (store > 2000), (end, told)


def test_a_reboot_keeps_the_disk_and_gets_a_new_network_namespace(lab):
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


def test_a_host_that_goes_down_during_a_task_is_unreachable(lab):
    command = [*lab["b"].argv(["sleep", "1000"])]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as task:
        lab.stop("b")
        assert task.wait(20) != 0
    lab.start("b")


def test_down_from_another_process_leaves_nothing():
    prefix = f"{PREFIX}x"
    ContainerLab(prefix, ["router", "a"]).up()
    assert podman.containers(prefix)
    subprocess.run([sys.executable, "-m", "tests.lab", "down", "--prefix", prefix], cwd=REPOSITORY, check=True)
    assert not podman.containers(prefix)
    assert not wiring.namespaces(prefix)
    assert not (STATE / prefix).exists()
    ContainerLab(prefix, []).down()  # removing nothing is no error
