# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An FTP server for passive downloads (RFC 959, RFC 2428): a data port is open only during its transfer."""

from __future__ import annotations

import contextlib
import socket
import threading

from tests.lab.netns import NamespaceLab
from tests.support import tcp

CONTROL = 21
DATA = range(50000, 50010)


class Server:
    """Serves on a host. Every file contains the host's name and both client addresses it sees."""

    def __init__(self, lab: NamespaceLab, host: str):
        self._lab, self._host = lab, host
        self._serving = contextlib.ExitStack()
        self._serving.enter_context(tcp.serving(lab, [host], CONTROL, self._accept))

    def stop(self) -> None:
        self._serving.close()

    def _accept(self, control: socket.socket, peer: tuple) -> None:
        threading.Thread(target=self._session, args=(control, peer[0]), daemon=True).start()

    def _session(self, control: socket.socket, client: str) -> None:
        with contextlib.suppress(ConnectionError):  # a health check is one connection, and a reset
            self._converse(control, client)

    def _converse(self, control: socket.socket, client: str) -> None:
        family = "ipv6" if control.family == socket.AF_INET6 else "ipv4"
        with control, control.makefile("rb") as stream:
            control.sendall(b"220 ready\r\n")
            data = None
            for line in stream:
                word = line.split()[0].upper()
                if word in (b"PASV", b"EPSV"):
                    data, answer = self._open(family, word)
                elif word == b"RETR":
                    control.sendall(b"150 here it comes\r\n")
                    answer = self._send(data, client)
                else:
                    answer = {b"USER": "331 password?", b"PASS": "230 logged in", b"QUIT": "221 bye"}.get(
                        word, "200 yes"
                    )
                control.sendall(f"{answer}\r\n".encode())

    def _open(self, family: str, word: bytes) -> tuple[socket.socket, str]:
        """Open a port for one transfer; return it and the reply to the client."""
        for port in DATA:
            try:
                listener = tcp.listen(self._lab, self._host, port, family)
            except OSError:
                continue  # another transfer has it
            if word == b"EPSV":
                return listener, f"229 there (|||{port}|)"
            # The client connects to the address in the reply: the proxy's (vsftpd: pasv_address).
            address = getattr(self._lab["a"], family).replace(".", ",")
            return listener, f"227 there ({address},{port >> 8},{port & 255})"
        raise AssertionError("all ports are in use")

    def _send(self, listener: socket.socket, client: str) -> str:
        with listener:
            sock, peer = listener.accept()
        with sock:
            sock.sendall(f"{self._host} {client} {peer[0]}".encode())
        return "226 done"
