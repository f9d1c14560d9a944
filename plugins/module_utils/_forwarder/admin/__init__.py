# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What people and programs ask a running forwarder: admin socket, commands, status, metrics, web page.

It knows config, counters and loop; of processes only their records.
"""
