# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the doctor knows about the host: ``gather`` reads it once into ``model.Facts``.

Everything that reads the host for the doctor is here. It knows neither the checks nor the report.
"""
