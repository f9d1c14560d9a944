# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes: the supervisor, its workers and checker, reload, re-exec, listeners that outlive all of them.

The top of the forwarder: it knows every other folder, and only the command line and the tests know it.
"""
