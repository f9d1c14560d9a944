# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The other end of the admin socket: one request, one answer. Used by the command line and by a module."""

from __future__ import annotations

import json
import os
import socket
import time

from ..config.backend_names import means
from . import runtime_file

TIMEOUT = 10.0  # seconds for one answer
POLL = 0.2  # seconds between two looks while a backend drains
LARGEST_ANSWER = 64 << 20  # bytes


class AdminError(Exception):
    """The forwarder cannot be asked, or refuses; the message is one sentence."""


def default_socket():
    """Return the path of the admin socket where the config names none."""
    return os.path.join(runtime_file.directory(), "admin.sock")


def ask(path, op, **arguments):
    """Return the answer to one request as a dictionary; raise AdminError."""
    request = json.dumps({"op": op, **{key: value for key, value in arguments.items() if value is not None}})
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(path)
            sock.sendall(request.encode() + b"\n")
            with sock.makefile("rb") as stream:
                line = stream.readline(LARGEST_ANSWER)
    except (FileNotFoundError, ConnectionRefusedError):
        raise AdminError(f"no forwarder listens on {path}; start l4proxy-forwarder.service") from None
    except PermissionError:
        raise AdminError(f"{path} may not be used by this user; become root or a member of its group") from None
    except OSError as error:
        raise AdminError(f"{path}: {error.strerror or error}") from None
    try:
        answer = json.loads(line)
    except ValueError:
        raise AdminError(f"{path}: the forwarder ended the connection without an answer") from None
    if not answer["ok"]:
        raise AdminError(answer["error"])
    return answer


def backends(document, backend, service=None):
    """Return {service: backend's part} of a status document; raise AdminError when there is none.

    Of a host that a service has at several ports, the parts are at "SERVICE HOST:PORT".
    """
    found = {
        one["name"] if each["name"] == backend else f"{one['name']} {each['name']}": each
        for one in document["services"]
        if service in (None, one["name"])
        for each in one["backends"]
        if means(backend, each["name"])
    }
    if not found:
        where = f"service {service}" if service else "any service"
        raise AdminError(f"there is no backend {backend} in {where} of this forwarder")
    return found


def connections(number):
    """Spell a number of connections."""
    return f"{number} connection{'' if number == 1 else 's'}"


def wait_until_empty(path, backend, service, timeout):
    """Wait until a backend has no connections; returns how many are left when ``timeout`` seconds are over."""
    deadline = time.monotonic() + timeout
    while True:
        found = backends(ask(path, "status")["status"], backend, service)
        left = sum(one["active"] for one in found.values())
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(POLL)


def wait_until_up(path, backend, service, timeout):
    """Wait until a backend is up; returns what is wrong with it when ``timeout`` seconds are over, "" when nothing is.

    A backend whose service asks no health questions counts as up.
    """
    deadline = time.monotonic() + timeout
    while True:
        document = ask(path, "status")["status"]
        found = backends(document, backend, service)
        wrong = [f"{name}: {one['state']}" for name, one in found.items() if one["state"] not in ("up", "unknown")]
        if not wrong or time.monotonic() >= deadline:
            return "; ".join(wrong)
        time.sleep(POLL)
