# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles use the same paths on a host as the engines."""

from __future__ import annotations

import os

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared import paths

from .test_variables import ROOT, read


# (role, variable, path of the engines)
@pytest.mark.parametrize(("role", "variable", "path"), [
    ("forwarder", "_forwarder_config_path", paths.CONFIG),
    ("keeper", "_keeper_documents", paths.DOCUMENTS),
    ("keeper", "_keeper_state_directory", os.path.dirname(paths.SYSCTL_MEMORY)),
    ("keeper", "_keeper_runtime", os.path.dirname(paths.KEEPER_STATE)),
    ("keeper", "_keeper_lock", paths.ROUTING_LOCK),
])  # fmt: skip
def test_a_path_of_a_role_is_that_of_the_engines(role, variable, path):
    assert read(ROOT / "roles" / role / "vars" / "main.yml")[variable] == path
