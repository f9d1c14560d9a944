# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""forwarder_backend: what a diff says, and which states are orders.

The rest is in tests/kernel/forwarder/test_admin.py.
"""

from __future__ import annotations

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import commands
from ansible_collections.trueip.l4proxy.plugins.modules import forwarder_backend

FOUND = {"web": {"admin": "ready"}, "mail": {"admin": "draining", "enabled": False}}  # web: of version 0.1.0


def test_a_diff_has_a_line_for_each_service_in_order():
    before = {name: status["admin"] for name, status in FOUND.items()}
    assert forwarder_backend.lines(before) == "mail: draining\nweb: ready\n"


def test_what_the_config_disables_cannot_be_ready():
    assert forwarder_backend.targets(FOUND, "ready") == {"web": "ready", "mail": "disabled"}
    assert forwarder_backend.targets(FOUND, "maintenance") == dict.fromkeys(FOUND, "maintenance")


def test_the_states_are_the_requests_of_the_forwarder():
    requests = {name: shown for name, shown in commands.STATES.items() if shown}
    assert {**requests, "ready": forwarder_backend.SHOWN["ready"]} == forwarder_backend.SHOWN
    assert set(forwarder_backend.SHOWN) == set(commands.STATES)
