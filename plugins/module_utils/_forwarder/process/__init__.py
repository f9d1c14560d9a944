# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes: the supervisor, its workers and the health checker; reload, exec, and the listeners that outlive them.

It imports every other folder. Only the command line and the tests import it.
"""
