# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The UDP relay: listeners, flows, upstream sockets, and their handover to the next worker.

It knows config, loop and admission; not tcp, process or admin.
"""
