# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of hypothesis for all tests: no deadlines, because the machine may be busy.

`make test` (tests/run.sh) uses the same examples each time; other runs generate new ones.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

SAME = os.environ.get("L4PROXY_TEST_EXAMPLES") == "same"
settings.register_profile("any machine", deadline=None, derandomize=SAME, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
