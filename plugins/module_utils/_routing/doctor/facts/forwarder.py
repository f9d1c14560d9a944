# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The forwarder's config and process, from its files and admin socket: this engine does not import its code."""

from __future__ import annotations

import json
from typing import Any

from ...host import files
from . import admin_socket, proc
from .model import Forwarder, Socket


def read(config: str, runtime: str, proc_directory: str) -> Forwarder | None:
    """None if there is no config: this host is no proxy of ours, or it uses another forwarder."""
    try:
        content = files.read(config)
        if content is None:
            return None
        document = json.loads(content)
        listeners, targets = _configured(document)
        socket = admin_socket.path_of(document, runtime)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Forwarder(config, error=f"is invalid: {type(error).__name__}: {error}")
    except OSError as error:
        return Forwarder(config, error=f"cannot be read: {error.strerror}")
    backends = tuple(sorted({target.address for target in targets}))
    running = _running(runtime)
    pid = running.get("pid")
    status = proc.status(proc_directory, pid) if pid else None
    if pid is None or status is None:
        return Forwarder(config, listeners=listeners, backends=backends, targets=targets)
    old_code, not_saved = ((), None) if status.stopped else admin_socket.read(socket)
    return Forwarder(
        config,
        None,
        listeners,
        backends,
        pid,
        status.capabilities,
        targets,
        status.uid,
        status.stopped,
        old_code,
        tuple(sorted((running.get("failed") or {}).items())),
        not_saved,
    )


def _configured(data: dict[str, Any]) -> tuple[tuple[Socket, ...], tuple[Socket, ...]]:
    """(listeners, targets): a backend's address is a target if its service listens on an address of that family."""
    listeners, targets = [], []
    for service in data["services"]:
        protocol = service.get("protocol", "tcp")
        own = [Socket(protocol, listen["address"], *_ports(listen["port"])) for listen in service["listen"]]
        # The kernel itself forwards the others.
        listeners += own if service.get("datapath", "forwarder") == "forwarder" else []
        families = {listener.family for listener in own}
        for backend in service["backends"]:
            ports = _ports(backend.get("port", own[0].port))
            targets += [Socket(protocol, backend[family], *ports) for family in families if backend.get(family)]
    return tuple(listeners), tuple(sorted(targets, key=lambda target: (target.address, target.protocol, target.port)))


def _ports(value: Any) -> tuple[int, int]:
    """8080 → (8080, 0); a range ``8000-8010`` → (8000, 8010)."""
    first, _dash, last = str(value).partition("-")
    return int(first), int(last or 0)


def _running(runtime: str) -> dict[str, Any]:
    """The runtime file; empty without a valid one."""
    try:
        found = json.loads(files.read(runtime) or "{}")
    except (ValueError, OSError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("pid"), int) else {}
