# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Servers that users put behind a proxy, on hosts of the lab: PostgreSQL, OpenSSH, redis and dnsmasq.

Every one listens on both addresses of its host, keeps all it writes in a directory of the lab, and ends with the lab.
"""

from __future__ import annotations

import re
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab import wiring
from tests.support.waiting import PATIENCE, eventually

if TYPE_CHECKING:
    from tests.lab.netns import NamespaceLab


class Daemon:
    """A server on a host of the lab; start() runs ``argv``."""

    port: int
    argv: list[str]

    def __init__(self, lab: NamespaceLab, host: str):
        self.host = lab[host]
        lab.tmp.chmod(0o711)  # a server that runs as a user of its own has to get there
        self.directory = Path(tempfile.mkdtemp(prefix=f"{type(self).__name__.lower()}-", dir=lab.tmp))
        self.directory.chmod(0o755)
        self._process: subprocess.Popen | None = None

    def start(self) -> Daemon:
        """Start it, and wait until it accepts connections on both addresses."""
        self._process = self.host.spawn(self.argv)
        deadline = time.monotonic() + PATIENCE
        with self.host.inside():
            for address in (self.host.ipv4, self.host.ipv6):
                self._wait_for(address, deadline)
        return self

    def said(self) -> str:
        """Its log so far."""
        return self._process.log.read_text(encoding="utf-8", errors="replace")

    def wait_said(self, pattern: str) -> list[str]:
        """All matches of a pattern in its log, once there is one: servers log after they answer."""
        return eventually(lambda: re.findall(pattern, self.said()), f"{pattern} is logged", lambda: self.said()[-2000:])

    def _wait_for(self, address: str, deadline: float) -> None:
        while True:
            try:
                socket.create_connection((address, self.port), timeout=1).close()
                return
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    name = type(self).__name__
                    raise RuntimeError(f"{name} does not answer on {address}: {error}\n{self.said()}") from error
                time.sleep(0.01)


class PostgreSQL(Daemon):
    """A PostgreSQL cluster that admits only the addresses ``admitted``, without a password."""

    port = 5432

    def __init__(self, lab: NamespaceLab, host: str, admitted: list[str]):
        super().__init__(lab, host)
        binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        # PostgreSQL refuses to run as root; the package has created this user.
        as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        wiring.run(["chown", "postgres:postgres", str(self.directory)])
        cluster = self.directory / "cluster"
        options = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync"]
        wiring.run([*as_postgres, str(binaries / "initdb"), f"--pgdata={cluster}", *options], timeout=60)
        hba = ["local all all trust", *(f"host all all {address} trust" for address in admitted)]
        (cluster / "pg_hba.conf").write_text("\n".join(hba) + "\n", encoding="ascii")
        settings = {
            "port": self.port,
            "fsync": "off",
            "wal_level": "minimal",
            "max_wal_senders": 0,
            "max_connections": 60,
            "synchronize_seqscans": "off",  # rows come out in the order they went in
            "listen_addresses": f"{self.host.ipv4},{self.host.ipv6}",
            "unix_socket_directories": self.directory,
        }
        pairs = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self.argv = [*as_postgres, str(binaries / "postgres"), "-D", str(cluster), *pairs]

    def ask(self, query: str) -> str:
        """The result of a query on the server's host, unaligned and without headings."""
        psql = ["psql", "-h", str(self.directory), "-U", "postgres", "-X", "-A", "-t", "-c", query]
        return self.host.run(psql).stdout.strip()


class OpenSSH(Daemon):
    """sshd that admits root with the key ``key`` only."""

    port = 2222

    def __init__(self, lab: NamespaceLab, host: str):
        super().__init__(lab, host)
        self.key = self.directory / "id"
        for path in (self.key, self.directory / "host"):
            wiring.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)])
        lines = [
            f"Port {self.port}",
            f"ListenAddress {self.host.ipv4}",
            f"ListenAddress {self.host.ipv6}",
            f"HostKey {self.directory}/host",
            f"AuthorizedKeysFile {self.key}.pub",
            f"PidFile {self.directory}/pid",
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
            "StrictModes no",
            "UsePAM no",
            "UseDNS no",
            "MaxStartups 200",
        ]
        config = self.directory / "config"
        config.write_text("\n".join(lines) + "\n", encoding="ascii")
        # sshd needs /run/sshd, which systemd creates on a host; "ip netns exec" has its own mounts.
        program = f"mount -t tmpfs run /run && mkdir /run/sshd && exec /usr/sbin/sshd -D -e -f {config}"
        self.argv = ["sh", "-c", program]

    def command(self, address: str, port: int, *command: str) -> list[str]:
        """The command line that runs a command over ssh."""
        options = {
            "IdentityFile": self.key,
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "ConnectTimeout": int(PATIENCE),
        }
        pairs = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "none", *pairs, "-p", str(port), f"root@{address}", *command]


class Redis(Daemon):
    """redis that keeps everything in memory."""

    port = 6379

    def __init__(self, lab: NamespaceLab, host: str):
        super().__init__(lab, host)
        addresses = [self.host.ipv4, self.host.ipv6]
        options = {"port": [self.port], "bind": addresses, "save": [""], "protected-mode": ["no"]}
        pairs = [part for name, values in options.items() for part in (f"--{name}", *map(str, values))]
        self.argv = ["redis-server", *pairs, "--dir", str(self.directory)]


class Dnsmasq(Daemon):
    """dnsmasq with the names ``records`` ({name: (IPv4, IPv6)}) and the texts ``texts`` ({name: text}) only."""

    port = 5353

    def __init__(self, lab: NamespaceLab, host: str, records: dict[str, tuple[str, str]], texts: dict[str, str]):
        super().__init__(lab, host)
        self.argv = [
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=nobody",
            "--pid-file=",
            f"--port={self.port}",
            "--bind-interfaces",
            f"--listen-address={self.host.ipv4},{self.host.ipv6}",
            "--log-queries=extra",
            "--log-facility=-",
            *(f"--host-record={name},{ipv4},{ipv6}" for name, (ipv4, ipv6) in records.items()),
            *(f"--txt-record={name},{text}" for name, text in texts.items()),
        ]
