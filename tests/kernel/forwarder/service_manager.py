# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a service manager does for a forwarder: it keeps descriptors, starts the next process, kills what is left."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path

from tests.support.forwarding import Forwarder
from tests.support.waiting import PATIENCE


class Managed(Forwarder):
    """A forwarder whose service manager listens until it has ended; else it would wait for that for seconds."""

    def __init__(self, manager, *arguments, **options):
        self._manager = manager
        super().__init__(*arguments, **options)

    def __exit__(self, *exc_info):
        listener = threading.Thread(target=self._manager.listen_until_end, args=(self.process,))
        listener.start()
        super().__exit__(*exc_info)
        listener.join()


class ServiceManager:
    """As systemd for a unit with FileDescriptorStoreMax=: keeps descriptors and passes them to the next process."""

    # Descriptors must begin at 3, and LISTEN_PID must be the program's pid; a shell cannot do that.
    PASS = (
        "import os, sys\n"
        "numbers = [int(one) for one in sys.argv[1].split(',') if one]\n"
        "high = [os.dup2(number, 5000 + place) for place, number in enumerate(numbers)]\n"
        "for place, number in enumerate(high): os.dup2(number, 3 + place)\n"
        "os.closerange(3 + len(high), 5000 + len(high))\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "os.execvp(sys.argv[2], sys.argv[2:])\n"
    )

    def __init__(self, path):
        self.path = str(path)
        self.kept = {}
        self.state = None  # the state directory
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(self.path)
        os.chmod(self.path, 0o666)
        self._sock.settimeout(PATIENCE)

    def listen_until(self, word):
        """Handle notifications until one contains ``word``."""
        while True:
            data, descriptors, _flags, _address = socket.recv_fds(self._sock, 4096, 8)
            message = dict(line.split("=", 1) for line in data.decode().splitlines())
            if "FDSTORE" in message:
                (self.kept[message["FDNAME"]],) = descriptors
            if "FDSTOREREMOVE" in message:
                os.close(self.kept.pop(message["FDNAME"]))
            if word in message:
                return

    def listen_until_end(self, process):
        """Handle notifications until a process has ended and none is left."""
        self._sock.settimeout(0.1)
        ended = False
        while not ended:
            ended = process.poll() is not None
            with suppress(TimeoutError):
                self.listen_until("none is left")
        self._sock.settimeout(PATIENCE)

    def start(self, lab, document, directory=None, user=(), archive=None):
        """Start a forwarder with the stored descriptors."""
        if directory is not None:
            (directory / "forwarder.json").unlink(missing_ok=True)  # RuntimeDirectory= begins empty
        numbers = ",".join(str(number) for number in self.kept.values())
        environment = {"LISTEN_FDS": str(len(self.kept)), "LISTEN_FDNAMES": ":".join(self.kept)}
        if self.state:
            environment["STATE_DIRECTORY"] = str(self.state)
        return Managed(
            self,
            lab,
            document,
            wrapper=("/usr/bin/python3", "-c", self.PASS, numbers, *user),
            archive=archive,
            environment={**environment, "NOTIFY_SOCKET": self.path},
            pass_fds=list(self.kept.values()),
            directory=directory,
        )

    def close(self):
        self._sock.close()
        for number in self.kept.values():
            os.close(number)


def kill(pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def kill_all(forwarder):
    """As the service manager kills the remaining processes of a unit with KillMode=mixed."""
    kill([forwarder.process.pid, *forwarder.workers(), *forwarder.children("l4-checker")])


def alive(pids):
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]
