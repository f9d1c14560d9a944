# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's rules, routes, addresses, links, neighbours and marked connections, over netlink.

``neighbour_probe`` asks neighbours without it. The only folder that uses pyroute2. It imports document.
"""
