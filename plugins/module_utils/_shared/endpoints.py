# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Endpoints in text form: ``host:port``, ``192.0.2.1:80``, ``[2001:db8::1]:80``."""

from __future__ import annotations

import re

_PORT = re.compile("[0-9]{1,5}")


def split_endpoint(text: str) -> tuple[str, str]:
    """Split ``host``, ``host:port``, ``::1`` or ``[::1]:port`` into host and port, both as text; "" for no port.

    Neither is validated. Raise ValueError for a bracket that is not closed, or is followed by anything but a port.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not [ADDRESS] or [ADDRESS]:PORT")
        return host, rest[1:]
    if text.count(":") == 1:
        host, _colon, port = text.partition(":")
        return host, port
    return text, ""


def join_endpoint(host: str, port: object) -> str:
    """Return ``host:port``, or ``[2001:db8::1]:port`` for an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def port_number(text: str) -> int | None:
    """Return the port that ``text`` is, 1 to 65535; None for anything else."""
    return int(text) if _PORT.fullmatch(text) and 1 <= int(text) <= 65535 else None
