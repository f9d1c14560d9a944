# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The names of backends: ``host``, or ``host:port`` if a service has a host at several ports."""

from __future__ import annotations

import re
from collections.abc import Iterable


def host_of(name: str) -> str:
    """Return the host in a backend's name ``host``, ``host:port`` or ``host:first-last``."""
    host, _colon, port = name.rpartition(":")
    return host if host and re.fullmatch(r"[0-9]+(-[0-9]+)?", port) else name


def matches(wanted: str | None, name: str) -> bool:
    """Return whether an operator's ``wanted`` is the backend ``name``; a host's name matches all of its ports."""
    return wanted in (name, host_of(name))


def disabled(name: str, services: Iterable[str]) -> str:
    """Return why an operator cannot make a backend ready."""
    where = ", ".join(sorted(services))
    return (
        f"backend {name} is disabled in {where}: l4proxy_services has enabled: false for it; remove that and run the"
        " playbook trueip.l4proxy.site"
    )
