# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what a host has to what it must have: read, resolve, drain, plan (pure), apply, store.

It knows document, host, netlink and marks; the engine is its front door.
"""
