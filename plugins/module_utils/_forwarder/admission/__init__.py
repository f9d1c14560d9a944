# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may connect, and with which source address: networks, limits, refusals, the ladder of source addresses.

It imports loop (sockets) and counters (one number per client), and no other folder.
"""
