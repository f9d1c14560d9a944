# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the running forwarder says on its admin socket: old code in use, and whether it can save its state."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from .model import OldCode

TIMEOUT = 3.0  # seconds; a forwarder that does not answer is another check's finding
MAX_ANSWER = 64 << 20  # bytes


def read(path: str) -> tuple[tuple[OldCode, ...], str | None]:
    """Return (the old generations that run another archive, the oldest first; why the state is not saved, or None).

    If the forwarder does not answer, nothing is known: ((), None).
    """
    try:
        status = _ask(path)
        running = _archive(status)
        old = tuple(
            OldCode(entry["generation"], entry["version"], entry["sessions"], entry["age"])
            for entry in status.get("old_generations", ())
            if _archive(entry) != running
        )
        error = (status.get("state_file") or {}).get("error")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return (), None
    return old, None if error is None else str(error)


def _ask(path: str) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect(path)
        sock.sendall(b'{"op": "status"}\n')
        with sock.makefile("rb") as stream:
            status: dict[str, Any] = json.loads(stream.readline(MAX_ANSWER))["status"]
    return status


def _archive(entry: dict[str, Any]) -> tuple[Any, Any]:
    """Return what tells two archives apart; a generation of version 0.1.0 has no version here."""
    return entry["version"], (entry["archive"] or {}).get("sha256")


def path_of(config: dict[str, Any], runtime: str) -> str:
    """Return the path of the admin socket: the one in the config, or else beside the runtime file."""
    admin = config.get("admin", {})
    return str(admin.get("socket") or os.path.join(os.path.dirname(runtime), "admin.sock"))
