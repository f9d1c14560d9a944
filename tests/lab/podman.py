# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The podman commands of the container lab."""

from __future__ import annotations

import json
import time
from pathlib import Path

from tests.lab import wiring

LABEL = "l4proxy-lab"

#: runc, because crun refuses machines with both cgroup hierarchies. SYS_ADMIN, or systemd leaves its units' hardening
#: out without a word. /proc/sys is unmasked for sysctls. The limits are those of the smallest machine we know of.
RUN_OPTIONS = [
    "--detach",
    "--systemd=always",
    "--network=none",
    "--cap-add=NET_ADMIN,NET_RAW,SYS_ADMIN",
    "--security-opt=unmask=/proc/sys",
    "--security-opt=seccomp=unconfined",
    "--ulimit=nofile=20000:20000",
    "--ulimit=nproc=32768:32768",
    "--pids-limit=0",
]
STOP_SECONDS = 20


def podman(*args: str, check: bool = True, timeout: float = 180):
    return wiring.run(["podman", "--runtime", "runc", *args], check=check, timeout=timeout)


def create(name: str, prefix: str, hostname: str, image: str) -> None:
    # Set before init starts, at every boot; what systemd and the roles set later stays.
    sysctls = [f"--sysctl={key}={value}" for key, value in wiring.HOST_SYSCTLS.items()]
    identity = [f"--name={name}", f"--hostname={hostname}", f"--label={LABEL}={prefix}"]
    podman("run", *RUN_OPTIONS, *sysctls, *identity, image)


def containers(prefix: str) -> dict[str, int]:
    """The pid of init by container of the lab; 0 for a host that is powered off."""
    names = podman("ps", "--all", "--filter", f"label={LABEL}={prefix}", "--format", "{{.Names}}").stdout.split()
    return {name: init_pid(name) for name in names}


def init_pid(name: str) -> int:
    state = json.loads(podman("inspect", "--format", "{{json .State}}", name).stdout)
    return state["Pid"] if state["Running"] else 0


def remove(names: list[str]) -> None:
    """Kill and remove containers with their volumes."""
    if names:
        podman("rm", "--force", "--time=0", "--volumes", *names)


def restart(name: str) -> None:
    podman("restart", f"--time={STOP_SECONDS}", name)


def stop(name: str) -> None:
    podman("stop", f"--time={STOP_SECONDS}", name)


def start(name: str) -> None:
    podman("start", name)


def wait_booted(pid: int, name: str, timeout: float = 60) -> None:
    """Wait until systemd has booted. ``degraded`` counts as booted: a scenario may have failed units."""
    deadline = time.monotonic() + timeout
    state = ""
    while state not in ("running", "degraded"):
        if time.monotonic() > deadline:
            logs = podman("logs", "--tail=20", name, check=False).stdout
            raise TimeoutError(f"{name} is {state or 'not answering'} after {timeout:.0f} s; its console:\n{logs}")
        if not Path(f"/proc/{pid}").exists():
            raise TimeoutError(f"{name}: its init ended while booting; see: podman logs {name}")
        # nsenter instead of podman exec: 5 ms instead of 100, and this is asked often.
        command = ["nsenter", "--all", f"--target={pid}", "--", "systemctl", "is-system-running"]
        state = wiring.run(command, check=False).stdout.strip()
        time.sleep(0.05)
