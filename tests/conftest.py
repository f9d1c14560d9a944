# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For every test: hypothesis does not take a busy machine for a slow strategy.

What decides whether we ship (tests/run.sh) is asked with the same examples every time; a run by hand makes up new ones.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

SAME = os.environ.get("L4PROXY_TEST_EXAMPLES") == "same"
settings.register_profile("any machine", deadline=None, derandomize=SAME, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
