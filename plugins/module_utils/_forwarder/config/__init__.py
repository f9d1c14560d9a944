# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a service is: dataclasses, defaults, validation, and how an operator names a backend.

Pure: a JSON document in, frozen dataclasses or every error at once out. It knows no other folder.
"""
