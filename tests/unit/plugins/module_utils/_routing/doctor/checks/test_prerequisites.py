# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Unread facts, missing packages, documents that cannot be read, and interfaces that are down."""

from __future__ import annotations

from .. import cases
from ..cases import backend, peer

PROBLEMS = [
    (backend(unread={"the packet filters": "nft hangs"}), "warn unread", "filters could not be read: nft"),
    (backend(missing={"nftables": "marks cannot be set"}), "fail packages", "apt-get install nftables"),
    (backend(documents=(), peers=(), replies={}), "fail documents", "no state document"),
    (backend(faults=("x.json: is not JSON",)), "fail documents", "x.json: is not JSON"),
    (peer(wanted_dev="eth1"), "fail links", "interface eth1 does not exist"),
    (peer(links={"eth0": True, "eth1": False}, wanted_dev="eth1"), "fail links", "eth1 is down"),
]

test_a_problem_is_reported_with_a_reason_and_a_fix = cases.reports(PROBLEMS)
