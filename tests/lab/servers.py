# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""nginx on a host of the lab, with its own directory and a readable access log."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.waiting import PATIENCE, eventually

if TYPE_CHECKING:
    from tests.lab.hosts import LabHost

#: The first field is the client's address as nginx sees it.
LOG_FORMAT = '$remote_addr $remote_port [$time_iso8601] $server_port "$request" $status $body_bytes_sent'

CONFIG = """daemon off;
user root;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 4096; }}
http {{
  log_format lab '{log_format}';
  access_log {directory}/access.log lab;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
{listen}
    default_type text/plain;
    location / {{ return 200 "{name}\\n"; }}
  }}
}}
"""


def nginx_config(name: str, directory: Path, ports: list[int], more: str = "") -> str:
    """The configuration of a server that answers "<name>\\n" on the ports, over both families."""
    listen = "\n".join(f"    listen 0.0.0.0:{port};\n    listen [::]:{port} ipv6only=on;" for port in ports)
    return CONFIG.format(name=name, directory=directory, listen=listen + more, log_format=LOG_FORMAT)


class NginxServer:
    """nginx on a host of the lab, until stop() or the end of the lab."""

    def __init__(self, host: LabHost, directory: Path, ports: list[int], more: str = ""):
        self.host, self.ports = host, ports
        self.access_log = directory / "access.log"
        self.error_log = directory / "error.log"
        self._config = directory / "nginx.conf"
        self._config.write_text(nginx_config(host.name, directory, ports, more), encoding="utf-8")
        self._process = None

    def start(self, timeout: float = PATIENCE) -> None:
        """Start nginx, and wait until every port answers over IPv4 and IPv6."""
        argv = ["nginx", "-c", str(self._config), "-e", str(self.error_log)]
        self._process = self.host.spawn(argv)
        deadline = time.monotonic() + timeout
        addresses = [(address, port) for port in self.ports for address in ("127.0.0.1", "::1")]
        with self.host.inside():
            for address in addresses:
                self._wait_for(address, deadline)

    def stop(self) -> None:
        """Stop nginx; connections to its ports are then refused."""
        self._process.terminate()
        self._process.wait(PATIENCE)

    def requests(self) -> list[str]:
        """The access log's lines so far, oldest first; the first field is the address nginx saw."""
        return self.access_log.read_text(encoding="utf-8").splitlines() if self.access_log.exists() else []

    def wait_requests(self, count: int) -> list[str]:
        """The access log's lines once there are ``count``: nginx writes a line *after* the client has the response."""
        eventually(lambda: len(self.requests()) >= count, f"{count} requests in {self.access_log}")
        return self.requests()

    def clients(self) -> list[str]:
        """The client address of each request so far, as nginx saw it."""
        return [line.split()[0] for line in self.requests()]

    def _wait_for(self, address: tuple[str, int], deadline: float) -> None:
        while True:
            try:
                # A connection without a request leaves nothing in the access log.
                socket.create_connection(address, timeout=1).close()
                return
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = self._process.log.read_text(encoding="utf-8")
                    raise RuntimeError(
                        f"nginx on {self.host.name} does not answer on {address}: {error}\n{said}"
                    ) from error
                time.sleep(0.01)
