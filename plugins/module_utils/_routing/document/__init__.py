# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host must have: rules, routes, marks and sysctls as frozen dataclasses and as JSON documents; their schema.

Pure, except store, which reads and writes the directory of documents. It imports no other folder.
"""
