# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What else a host is asked and told: files, commands, sysctls, conntrack, remembered MAC addresses.

It knows document, and netlink for conntrack.
"""
