# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host of a namespace lab with its own writable /etc, /usr/local, /var/lib and /run.

    with NamespaceLab(prefix="k", hosts=["a"]) as lab:
        host = Sandbox(lab, "a")
        host.write("/etc/l4proxy/forwarder.json", "{}")     # does not change the machine's /etc

Programs see the machine's files, overlaid by what was written here. It is removed with the lab.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from tests.lab import wiring
from tests.lab.netns import NamespaceLab
from tests.support.waiting import PATIENCE, eventually

OVERLAID = ("/etc", "/usr/local", "/var/lib")

# "ip netns exec" has already made mounts private. /run is empty, to hide the sockets of the machine's daemons.
SCRIPT = """
set -e
mkdir -p "$1"
mount -t tmpfs -o mode=0755 scratch "$1"
shift_to=$1; ready=$2; shift 2
for directory; do
    upper=$shift_to/upper$directory work=$shift_to/work$directory
    mkdir -p "$upper" "$work"
    mount -t overlay -o "lowerdir=$directory,upperdir=$upper,workdir=$work" overlay "$directory"
done
mount -t tmpfs -o mode=0755 run /run
: > "$ready"
exec sleep infinity
"""


class Sandbox:
    """The host ``name`` of a lab, with its own files."""

    def __init__(self, lab: NamespaceLab, name: str):
        self.name, self._lab = name, lab
        ready = lab.tmp / f"{name}-ready"
        arguments = [str(lab.tmp / f"{name}-scratch"), str(ready), *OVERLAID]
        self._holder = lab[name].spawn(["sh", "-c", SCRIPT, "sh", *arguments])
        deadline = time.monotonic() + PATIENCE
        while not ready.exists():
            if self._holder.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the sandbox of {name} did not start: {self._holder.log.read_text()}")
            time.sleep(0.01)

    def argv(self, command: Iterable[str]) -> list[str]:
        """Return the command line that runs a command in the sandbox."""
        return ["nsenter", "--target", str(self._holder.pid), "--mount", "--net", "--", *command]

    def run(self, command: Iterable[str], **options) -> subprocess.CompletedProcess:
        """Run a command until it ends; CommandFailed shows its output."""
        return wiring.run(self.argv(command), **{"check": True, "timeout": 60, **options})

    def spawn(self, command: Iterable[str], **options) -> subprocess.Popen:
        """Start a command; the lab ends it."""
        return self._lab.track(self.name, self.argv(command), options)

    def write(self, path: str, content: str | bytes, mode: str = "0644") -> None:
        """Write a file, and create its directories."""
        staged = self._lab.tmp / f"{self.name}-staged"
        staged.write_bytes(content.encode() if isinstance(content, str) else content)
        self.run(["install", "-D", "-m", mode, str(staged), path])

    def read(self, path: str) -> str:
        """Return the text of a file."""
        return self.run(["cat", path]).stdout

    def eventually_exists(self, path: str | Path) -> None:
        """Wait until a file exists."""
        eventually(lambda: not self.run(["test", "-e", str(path)], check=False).returncode, f"{self.name} has {path}")
