# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers the documents are made of: masks, tables, priorities, owners; docs/docsite/rst/architecture.rst says why."""

from __future__ import annotations

SCHEMA = 1
MARK_MASK = 0xFF
TABLE_LOCAL_DELIVERY = 20100
# A proxy's id is added. The ways back of the strategies have tables of their own, because while one takes over from
# another both are in force, and a table has one default route.
TABLE_MARK = 20100
TABLE_ADDRESS = 20400
PRIORITY_LOOKUP = 1100
PRIORITY_GUARD = 1101
PROTOCOL_LOCAL_DELIVERY = 201
PROTOCOL_RETURN_PATH = 202

FAMILY = {4: "ipv4", 6: "ipv6"}

# Sources of the handshake probe, one a proxy: documentation ranges (RFC 5737, RFC 3849) that no client comes from.
PROBE_SOURCE = {4: "198.51.100.{0}", 6: "2001:db8:ffff::{0}"}
