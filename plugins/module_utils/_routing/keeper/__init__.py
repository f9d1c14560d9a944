# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The keeper: applies the documents at boot, monitors the kernel, and repairs what other tools remove.

It may import reconcile and whatever that may import.
"""
