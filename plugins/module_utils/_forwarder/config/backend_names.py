# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How an operator names backends."""

from __future__ import annotations

import re


def host_of(name: str) -> str:
    """Return the host in a backend's name: a host that a service has at several ports is there as host:port, or
    host:first-last, once for each."""
    host, _colon, port = name.rpartition(":")
    return host if host and re.fullmatch(r"[0-9]+(-[0-9]+)?", port) else name


def means(wanted: str, name: str) -> bool:
    """Say whether ``wanted`` means the backend ``name``: a host's name means it at all of its ports."""
    return wanted in (name, host_of(name))
