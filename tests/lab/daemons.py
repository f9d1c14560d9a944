# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Servers that users put behind a proxy, on hosts of the lab: web, SQL, SSH, mail, redis and DNS.

Every one listens on both addresses of its host, keeps all it writes in a directory of the lab, and ends with the lab.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab import netns, servers, wiring
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

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Meanwhile it does not run; connections to its port are refused."""
        netns.stop(self._process)
        yield
        self.start()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Meanwhile none of its processes runs: the kernel accepts connections, and nobody answers."""
        pids = [self._process.pid, *_descendants(self._process.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

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


def _descendants(pid: int) -> Iterator[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    for child in map(int, children):
        yield child
        yield from _descendants(child)


def self_signed(directory: Path, name: str) -> tuple[Path, Path]:
    """Make a certificate of this name and its key; return their paths."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    wiring.run(["openssl", "req", "-x509", *curve, *subject, "-out", str(certificate), "-keyout", str(key)])
    return certificate, key


class Nginx(Daemon):
    """nginx: HTTP on ``port``, after PROXY headers on ``proxy_port``, HTTPS on ``tls_port``; 503 while ``broken``."""

    port, proxy_port, tls_port = 8081, 8082, 8443

    def __init__(self, lab: NamespaceLab, host: str):
        super().__init__(lab, host)
        self.broken = self.directory / "broken"
        self.certificate, key = self_signed(self.directory, host)
        more = f"""
    listen 0.0.0.0:{self.proxy_port} proxy_protocol;
    listen [::]:{self.proxy_port} ipv6only=on proxy_protocol;
    listen 0.0.0.0:{self.tls_port} ssl;
    listen [::]:{self.tls_port} ipv6only=on ssl;
    ssl_certificate {self.certificate};
    ssl_certificate_key {key};
    if (-f {self.broken}) {{ return 503; }}"""
        config = self.directory / "nginx.conf"
        config.write_text(servers.nginx_config(host, self.directory, [self.port], more), encoding="utf-8")
        self.argv = ["nginx", "-c", str(config), "-e", str(self.directory / "error.log")]


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
    """sshd that admits root with the key ``key`` only, and ``startups`` clients at once that are not yet admitted."""

    port = 2222

    def __init__(self, lab: NamespaceLab, host: str, startups: int = 200):
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
            f"MaxStartups {startups}",
        ]
        version = re.match(r"OpenSSH_(\d+)\.(\d+)", wiring.run(["ssh", "-V"]).stderr)
        if version and (int(version[1]), int(version[2])) >= (9, 8):
            lines.append("PerSourcePenalties no")  # tests connect without a login more often than it tolerates
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


class OpenSMTPD(Daemon):
    """A mail server that rejects all mail."""

    port = 2525

    def __init__(self, lab: NamespaceLab, host: str):
        super().__init__(lab, host)
        listen = [
            f"listen on {address} port {self.port} hostname {host}" for address in (self.host.ipv4, self.host.ipv6)
        ]
        config = self.directory / "config"
        config.write_text("\n".join([*listen, "match from any for any reject"]) + "\n", encoding="ascii")
        # Its paths are compiled in. It asks DNS for each client's name before it greets; here no server is named.
        mounts = "mount -t tmpfs run /run && mount -t tmpfs spool /var/spool && mount --bind /dev/null /etc/resolv.conf"
        self.argv = ["sh", "-c", f"{mounts} && exec smtpd -d -f {config}"]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Meanwhile it accepts no connection; the kernel does."""
        control = ["nsenter", "-m", "-t", str(self._process.pid), "smtpctl"]
        wiring.run([*control, "pause", "smtp"])
        yield
        wiring.run([*control, "resume", "smtp"])


class MariaDB(Daemon):
    """A MariaDB without tables, which admits ``places`` + 1 connections at once."""

    port = 3306

    def __init__(self, lab: NamespaceLab, host: str, places: int):
        super().__init__(lab, host)
        self.directory.chmod(0o777)
        self.argv = [
            "mariadbd",
            "--no-defaults",
            "--user=nobody",
            "--skip-grant-tables",
            "--skip-innodb",
            "--default-storage-engine=Aria",
            "--skip-name-resolve",
            f"--datadir={self.directory}",
            f"--socket={self.directory}/socket",
            f"--pid-file={self.directory}/pid",
            f"--port={self.port}",
            f"--bind-address={self.host.ipv4},{self.host.ipv6}",
            f"--max-connections={places}",
            "--connect-timeout=3600",
        ]


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
