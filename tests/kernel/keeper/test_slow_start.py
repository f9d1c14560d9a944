# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A start that takes long gets more time from systemd while it makes progress; one that hangs does not."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host import files

from tests.lab.netns import cli_environment
from tests.support.routing import local_delivery
from tests.support.waiting import PATIENCE, eventually

HOSTS = ["a", "b"]

# As `l4proxy keep`, but it extends the timeout often. With "hang", the first access to the kernel does not return.
PROGRAM = """
import os, sys, time
from l4proxy._routing.keeper import starting
from l4proxy._routing.keeper.notify import notify
starting.INTERVAL = 1.0
timer = starting.StartTimer(lambda text: notify(text, os.environ))
timer.start()
from l4proxy._routing.host import sysctl
from l4proxy._routing.keeper import command
from l4proxy._routing.netlink.kernel import Kernel
from l4proxy._routing.reconcile.host import Host
directory, way = sys.argv[1:]
host = Host(
    sysctls=sysctl.Sysctls(f"{directory}/sysctl.json"), lock=f"{directory}/lock",
    make_kernel=(lambda: time.sleep(1000)) if way == "hang" else Kernel,
)
raise SystemExit(command.run(f"{directory}/routing.d", host=host, timer=timer))
"""
MORE = "EXTEND_TIMEOUT_USEC=20000000"


@pytest.fixture
def a(lab, tmp_path):
    (tmp_path / "routing.d").mkdir()
    (tmp_path / "routing.d" / "local_delivery.json").write_text(json.dumps(local_delivery(lab["b"])))
    yield lab["a"]
    lab.engine.remove(lab["a"], "local_delivery")


@contextlib.contextmanager
def starting(host, directory, way: str):
    """Start a keeper; yield the socket that systemd would read."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(directory / "notify"))
        systemd.settimeout(PATIENCE)
        environment = {**cli_environment(), "NOTIFY_SOCKET": str(directory / "notify")}
        process = host.spawn([sys.executable, "-c", PROGRAM, str(directory), way], env=environment)
        try:
            yield systemd
        finally:
            process.kill()
            process.wait()


def received(systemd, seconds: float) -> list[str]:
    """The messages of the next seconds."""
    deadline, found = time.monotonic() + seconds, []
    while (left := deadline - time.monotonic()) > 0:
        systemd.settimeout(left)
        with contextlib.suppress(TimeoutError):
            found.append(systemd.recv(1000).decode())
    return found


def test_a_start_that_waits_for_the_lock_gets_more_time_until_it_is_ready(a, tmp_path):
    with contextlib.ExitStack() as held:
        held.enter_context(files.locked(str(tmp_path / "lock")))
        with starting(a, tmp_path, "wait") as systemd:
            assert {systemd.recv(1000).decode() for _message in range(2)} == {MORE}
            held.close()
            messages = iter(lambda: systemd.recv(1000).decode(), "READY=1")
            assert set(messages) <= {MORE, "WATCHDOG=1"}
            assert MORE not in received(systemd, 2.5)


def test_a_start_that_hangs_gets_no_more_time(a, tmp_path):
    with starting(a, tmp_path, "hang") as systemd:
        eventually(lambda: not received(systemd, 2.5), "no message once all is imported")
