# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backend gets a connection, which are healthy, and the runtime of a service that both belong to.

It imports config, loop, counters and admission.
"""
