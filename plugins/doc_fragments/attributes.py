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
    description: Can run in C(check_mode) and say truthfully what would be changed, without changing it.
  diff_mode:
    description: Returns what was changed, or in C(check_mode) would be, when in diff mode.
  platform:
    description: The platform on which the module runs.
    platforms: linux
"""

    # For action plugins that hand their work to copy and file.
    ACTION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and say truthfully what would be changed, without changing it.
    support: full
  diff_mode:
    description: Shows which archive the link names; the archive itself is this collection's own code.
    support: partial
    details: The content of the archive is not shown.
  platform:
    description: The platform on which the module runs.
    platforms: linux
    support: full
"""

    # For modules that only look.
    INFO = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode); the module changes nothing.
    support: full
  diff_mode:
    description: There is no difference to show; the module changes nothing.
    support: N/A
  platform:
    description: The platform on which the module runs.
    platforms: linux
    support: full
"""
