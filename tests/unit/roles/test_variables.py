# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The defaults, the argument specs and the README of a role have the same variables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared import paths

ROOT = Path(__file__).resolve().parents[3]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
# Prefix of inventory variables, which roles read and give no default.
INVENTORY_WIDE = "l4proxy_"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def options(role: Path) -> dict[str, dict[str, Any]]:
    return read(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]


@pytest.mark.parametrize(("role", "variable", "path"), [
    ("forwarder", "_forwarder_config_path", paths.CONFIG),
    ("keeper", "_keeper_documents", paths.DOCUMENTS),
    ("keeper", "_keeper_state_directory", os.path.dirname(paths.SYSCTL_MEMORY)),
    ("keeper", "_keeper_runtime", os.path.dirname(paths.KEEPER_STATE)),
    ("keeper", "_keeper_lock", paths.ROUTING_LOCK),
])  # fmt: skip
def test_a_path_of_a_role_is_that_of_the_engines(role, variable, path):
    assert read(ROOT / "roles" / role / "vars" / "main.yml")[variable] == path


@pytest.fixture(params=ROLES, ids=lambda role: role.name)
def role(request) -> Path:
    return request.param


def test_the_argument_specs_have_the_defaults_of_the_role(role):
    defaults = read(role / "defaults" / "main.yml")
    specs = {name: option for name, option in options(role).items() if not name.startswith(INVENTORY_WIDE)}
    assert {name: option.get("default") for name, option in specs.items()} == defaults


def test_each_variable_begins_with_the_name_of_its_role_and_is_in_its_readme(role):
    assert [name for name in options(role) if not name.startswith((f"{role.name}_", INVENTORY_WIDE))] == []
    readme = (role / "README.md").read_text(encoding="utf-8")
    assert [name for name in options(role) if f"`{name}`" not in readme] == []
