# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The version of the collection and of the archive it installs; galaxy.yml carries the same number."""

from __future__ import annotations

VERSION = "0.1.0"
