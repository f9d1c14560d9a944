# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a host to its state documents: read, resolve, drain, check for conflicts, plan, apply, store.

Each step is a file, and hands a ``run.Run`` to the next one; ``engine`` calls them in order. single_object and
single_mark use the same steps for one object. It imports document, host, netlink and marks.
"""
