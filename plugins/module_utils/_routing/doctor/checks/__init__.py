# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The doctor's checks: pure functions of the facts that yield findings. ``registry`` has their order.

They know the facts and the firewall model; no check reads the host, and no check imports ``registry``.
"""
