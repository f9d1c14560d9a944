# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may connect, and from which source address the backend sees it: access list, limits, refusals, source address.

It imports loop (sockets) and counters (tables of numbers per client), and no other folder.
"""
