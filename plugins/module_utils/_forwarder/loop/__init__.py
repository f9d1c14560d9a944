# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every process of the forwarder runs on: event loop, poller, timers, sockets, own addresses, log.

It knows nothing of services and imports no other folder.
"""
