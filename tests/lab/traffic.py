# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests, access logs and packets on the hosts of a lab."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections.abc import Iterator

from tests.lab.hosts import LabHost

ACCESS_LOG = "/var/log/nginx/access.log"


def get(client: LabHost, proxy: LabHost, family: str, port: int, *, path: str = "/", check: bool = True) -> str | None:
    """Send a request from the client to the proxy; return the body without its last newline, or None on failure."""
    address = proxy.ipv4 if family == "ipv4" else f"[{proxy.ipv6}]"
    url = f"http://{address}:{port}{path}"
    done = client.run(["curl", "--silent", "--show-error", "--fail", "--max-time", "4", url], check=check)
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def logged(host: LabHost) -> list[str]:
    """The lines of a host's own nginx access log; the first field is the client's address."""
    return host.run(["cat", ACCESS_LOG]).stdout.splitlines()


def retransmits(host: LabHost) -> int:
    """The number of TCP segments that a host has retransmitted since it booted."""
    found = re.search(r"^TcpRetransSegs\s+(\d+)", host.run(["nstat", "-asz", "TcpRetransSegs"]).stdout, re.MULTILINE)
    if not found:
        raise RuntimeError(f"{host.name}: nstat did not list TcpRetransSegs")
    return int(found[1])


def neighbour_mac(host: LabHost, address: str) -> str | None:
    """The MAC that a host has learnt for an on-link address, or None."""
    found = re.search(r"lladdr (\S+)", host.run(["ip", "neigh", "show", "to", address]).stdout)
    return found[1] if found else None


@contextlib.contextmanager
def capture(host: LabHost, expression: str, dev: str = "eth0") -> Iterator[list[str]]:
    """Capture packets while the block runs: lines of ``MAC > MAC, … source.port > destination.port: …``, at its end."""
    packets: list[str] = []
    # Of a container, only the network namespace is entered: the process is our own child, so the signal reaches it.
    command = ["ip", "netns", "exec", host.netns, "tcpdump", "-U", "-l", "-enn", "-t", "-i", dev, expression]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        # tcpdump says "listening on" when the socket is open; packets before that would be lost.
        while process.stderr and "listening on" not in (line := process.stderr.readline()):
            if not line:
                raise RuntimeError(f"tcpdump did not start on {host.name}")
        yield packets
        time.sleep(0.5)
    finally:
        process.send_signal(signal.SIGINT)
        out, _err = process.communicate(timeout=10)
        packets += out.splitlines()
