# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP: accept a client, read its PROXY header, connect to a backend, forward bytes both ways, time out.

It imports config, loop, admission and backends; not udp, process or admin.
"""
