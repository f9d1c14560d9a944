# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Attributes that modules of this collection share."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Supports C(check_mode); returns what would be changed, without changing it.
  diff_mode:
    description: Returns the differences, when in diff mode.
  platform:
    description: The platform on which the module runs.
    platforms: linux
"""

    # For action plugins that call copy and file.
    ACTION = r"""
options: {}
attributes:
  check_mode:
    description: Supports C(check_mode); returns what would be changed, without changing it.
    support: full
  diff_mode:
    description: Shows which archive the link points to.
    support: partial
    details: The content of the archive is not shown.
  platform:
    description: The platform on which the module runs.
    platforms: linux
    support: full
"""

    # For modules that change nothing.
    INFO = r"""
options: {}
attributes:
  check_mode:
    description: Supports C(check_mode); the module changes nothing.
    support: full
  diff_mode:
    description: Has no differences to show; the module changes nothing.
    support: N/A
  platform:
    description: The platform on which the module runs.
    platforms: linux
    support: full
"""
