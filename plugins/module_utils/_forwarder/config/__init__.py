# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a service is: its options, defaults and bounds, how they are read and checked, and the names of backends.

Pure: from a JSON document to frozen dataclasses, or to all errors at once. It imports no other folder.
"""
