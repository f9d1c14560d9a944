# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client of the admin socket: one request, one answer. Used by the command line and by Ansible modules."""

from __future__ import annotations

import json
import socket
import time

from ..config.backend_names import matches
from . import runtime_file
from .kernel_services import in_kernel, pointers

TIMEOUT = 10.0  # seconds for one answer
ENDING = 2.0  # seconds until the status knows that a connection has ended
COUNTED = 8.0  # the same of one that the kernel has
SETTLED = 0.5  # seconds until the kernel gives a drained backend no more connections, at most
POLL = 0.2  # seconds between two requests while waiting for a backend
MAX_ANSWER = 64 << 20  # bytes
USABLE = ("up", "unknown", "disabled")  # states of a backend for which nobody has to wait


class AdminError(Exception):
    """The forwarder cannot be reached or refuses the request. The message is one sentence, ``reason`` is for plays."""

    reason = "other"


class UnknownBackend(AdminError):
    """No service of the forwarder has this backend."""

    reason = "unknown_backend"


class DisabledBackend(AdminError):
    """The config of the forwarder disables a backend that is to be made ready."""

    reason = "disabled"


def default_socket():
    """Return the path of the admin socket, if the config names no other one."""
    return runtime_file.admin_socket()


def ask(path, op, **arguments):
    """Send one request, without the arguments that are None; return the answer, a dictionary. Raise AdminError."""
    request = json.dumps({"op": op, **{key: value for key, value in arguments.items() if value is not None}})
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(path)
            sock.sendall(request.encode() + b"\n")
            with sock.makefile("rb") as stream:
                line = stream.readline(MAX_ANSWER)
    except (FileNotFoundError, ConnectionRefusedError):
        raise AdminError(f"no forwarder listens on {path}; start l4proxy-forwarder.service") from None
    except PermissionError:
        raise AdminError(f"permission denied for {path}; become root or a member of its group") from None
    except OSError as error:
        raise AdminError(f"{path}: {error.strerror or error}") from None
    try:
        answer = json.loads(line)
    except ValueError:
        raise AdminError(f"{path}: the forwarder closed the connection without a complete answer") from None
    if not answer["ok"]:
        raise (DisabledBackend if answer.get("reason") == DisabledBackend.reason else AdminError)(answer["error"])
    return answer


def backends(document, backend, service=None):
    """Return {service: entry of the backend in it} from a status document; raise UnknownBackend if there is none.

    If a service has a host at several ports, the keys are "SERVICE HOST:PORT".
    """
    entries = {
        each["name"] if entry["name"] == backend else f"{each['name']} {entry['name']}": entry
        for each in document["services"]
        if service in (None, each["name"])
        for entry in each["backends"]
        if matches(backend, entry["name"])
    }
    if not entries:
        where = f"service {service}" if service else "any service"
        raise UnknownBackend(f"there is no backend {backend} in {where} of this forwarder")
    return entries


def connections(number):
    """Return a number of connections in words."""
    return f"{number} connection{'' if number == 1 else 's'}"


def wait_until_empty(path, backend, service, timeout):
    """Wait up to ``timeout`` seconds until a backend has no connections; return how many it still has."""
    begun = time.monotonic()
    while True:
        document, elapsed = ask(path, "status")["status"], time.monotonic() - begun
        remaining = sum(entry["active"] or 0 for entry in backends(document, backend, service).values())
        uncounted = _uncounted(document, backend, service, elapsed)
        if not (remaining or uncounted) or elapsed >= timeout:
            break
        time.sleep(POLL)
    if uncounted and not remaining:
        raise AdminError(uncounted)
    return remaining


def _uncounted(document, backend, service, seconds):
    """Return a sentence if the keeper has not counted the connections of a backend in the last ``seconds``, else None.

    Before that, they were counted while the backend still got connections.
    """
    for each in document["services"]:
        known = service in (None, each["name"]) and any(matches(backend, entry["name"]) for entry in each["backends"])
        age = each.get("kernel_numbers_age")
        if known and in_kernel(each) and (age is None or age > seconds - SETTLED):
            return (
                f"the connections of backend {backend} in service {each['name']} are not known: the kernel forwards it,"
                " and the keeper has not counted them since; start l4proxy-keeper.service, or wait 10 s or longer"
            )
    return None


def end_connections(path, backend, service):
    """End all connections of a backend; return how many they were, and how many it still has."""
    answer = ask(path, "kill", backend=backend, service=service)
    document = ask(path, "status")["status"]
    names = [each["name"] for each in document["services"] if service in (None, each["name"]) and in_kernel(each)]
    having = [name for name in names if any(one["active"] for one in _entries(document, backend, name))]
    if having:
        raise AdminError("; ".join(pointers({name: answer["in_kernel"][name] for name in having}, "-D")))
    return answer["ended"], wait_until_empty(path, backend, service, COUNTED if names else ENDING)


def _entries(document, backend, service):
    return [
        entry
        for each in document["services"]
        for entry in each["backends"]
        if each["name"] == service and matches(backend, entry["name"])
    ]


def wait_until_up(path, backend, service, timeout):
    """Wait up to ``timeout`` seconds until a backend is up; return the services where it is not ("" if it is up).

    A backend without health checks counts as up. Services that disable the backend are passed over.
    """
    deadline = time.monotonic() + timeout
    while True:
        entries = backends(ask(path, "status")["status"], backend, service)
        faults = [f"{name}: {entry['state']}" for name, entry in entries.items() if entry["state"] not in USABLE]
        if not faults or time.monotonic() >= deadline:
            return "; ".join(faults)
        time.sleep(POLL)
