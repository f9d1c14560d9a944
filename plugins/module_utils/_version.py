# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The version of what runs. An archive carries the collection's (see plugin_utils/_archive.py); a checkout has none."""

from __future__ import annotations

VERSION = "0+checkout"
