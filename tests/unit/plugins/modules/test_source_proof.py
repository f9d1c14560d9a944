# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.modules import source_proof

SAMPLE = {"address": "198.18.0.21", "port": 53, "source": "198.51.100.11", "source_port": 41000}
SAMPLE |= {"protocol": "udp", "token": 7}

ERRORS = [
    ({"targets": [SAMPLE], "samples": [SAMPLE]}, []),
    ({"targets": [{**SAMPLE, "address": "b"}]}, ["targets[0].address: 'b' is not an IP address"]),
    (
        {"samples": [{"address": "198.18.0.21"}]},
        [
            "samples[0].source: None is not an IP address",
            "samples[0].port: None is not a port (1-65535)",
            "samples[0].protocol: None is neither tcp nor udp",
            "samples[0].token: None is not the token of a sample",
        ],
    ),
    ({"seconds": 3600}, ["seconds: 3600 is not a number from 1 to 600"]),
]


@pytest.mark.parametrize(("options", "expected"), ERRORS)
def test_invalid_options_are_reported(options, expected):
    assert source_proof.errors_of({"targets": [], "samples": [], "seconds": 20, **options}) == expected
