# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Services that the kernel forwards, as one nft table: rendering, changing it in one transaction, reading it back.

It imports document, host and netlink. ``render.render`` makes a Table of services and states, ``table.Datapath`` reads
and changes the live one, ``counters.read`` returns what it has counted.
"""
