# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.backend_names import matches

ROWS = [
    ("b", "b", True),
    ("b", "b:8080", True),
    ("b:8080", "b:8080", True),
    ("b", "b:8000-8009", True),
    ("b", "b:8000-", False),
    ("b:8080", "b:8081", False),
    ("b", "bb:8080", False),
    ("b", "b:http", False),
    ("b", "b:", False),
    ("b:8080", "b", False),
    ("192.0.2.1", "192.0.2.1:80", True),
    ("2001:db8::1", "2001:db8::1", True),
    ("2001:db8::1", "2001:db8::1:80", True),
    ("2001:db8::1", "2001:db8::2", False),
    (None, "b", False),
]


@pytest.mark.parametrize(("wanted", "name", "expected"), ROWS)
def test_a_host_name_means_the_backend_at_all_of_its_ports(wanted, name, expected):
    assert matches(wanted, name) is expected
