# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What operators and monitoring see and change: admin socket, commands, status, metrics, web page.

It imports config, counters, loop and backends. It knows processes only by the Snapshot that it is given.
"""
