# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How an operator names backends."""

from __future__ import annotations


def means(wanted, name):
    """Say whether ``wanted`` means the backend ``name``: a host with several ports in one service is there as
    host:port, once for each, and its name means all of them."""
    host, _colon, port = name.rpartition(":")
    return wanted == name or (wanted == host and port.isdigit())
