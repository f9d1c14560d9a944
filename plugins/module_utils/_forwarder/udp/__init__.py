# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""UDP: listeners, sessions and upstream sockets, and their handover to the next worker at a reload.

It imports config, loop, admission and backends; not tcp, process or admin.
"""
