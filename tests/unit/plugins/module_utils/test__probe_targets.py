# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils import _probe_targets

GOOD = {"address": "198.18.0.21", "port": 8080, "source": "198.51.100.11", "name": ""}


@pytest.mark.parametrize(("change", "expected"), [
    ({}, []),
    ({"address": "b"}, ["targets[0].address: 'b' is not an IP address"]),
    ({"source": "::1"}, ["targets[0]: 198.18.0.21 and ::1 are of different families"]),
    ({"port": 0}, ["targets[0].port: 0 is not a port (1-65535)"]),
    ({"port": 70000, "source": "x"},
     ["targets[0].source: 'x' is not an IP address", "targets[0].port: 70000 is not a port (1-65535)"]),
])  # fmt: skip
def test_invalid_addresses_ports_and_mixed_families_are_reported(change, expected):
    assert _probe_targets.errors_of({**GOOD, **change}, "targets[0]") == expected
