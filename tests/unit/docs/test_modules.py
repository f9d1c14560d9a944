# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of each module, with its fragments, agrees with the argument spec."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import pytest
import yaml
from ansible_collections.trueip.l4proxy.plugins.module_utils import _host_module
from ansible_collections.trueip.l4proxy.plugins.modules import (
    packet_mark,
    policy_route,
    policy_rule,
    routing_state,
    routing_state_info,
    source_proof,
)

MODULES = {
    packet_mark: packet_mark.ARGUMENTS,
    policy_route: {**_host_module.SINGLE_OBJECT, **policy_route.ARGUMENTS},
    policy_rule: {**_host_module.SINGLE_OBJECT, **policy_rule.ARGUMENTS},
    routing_state: routing_state.ARGUMENTS,
    routing_state_info: routing_state_info.ARGUMENTS,
    source_proof: source_proof.ARGUMENTS,
}
KEYS = ("type", "default", "choices", "required", "elements")


FRAGMENTS = "ansible_collections.trueip.l4proxy.plugins.doc_fragments"


def documented(module: ModuleType) -> dict[str, Any]:
    """The documented options of a module and of its fragments."""
    documentation = yaml.safe_load(module.DOCUMENTATION)
    options = dict(documentation["options"])
    for name in documentation["extends_documentation_fragment"]:
        file, _dot, part = name.removeprefix("trueip.l4proxy.").partition(".")
        fragment = importlib.import_module(f"{FRAGMENTS}.{file}").ModuleDocFragment
        options |= yaml.safe_load(getattr(fragment, part.upper() or "DOCUMENTATION"))["options"]
    return options


def summary(options: dict[str, Any], nested: str) -> dict[str, Any]:
    """What both must say of each option; ``nested`` is the key of its suboptions."""
    return {
        name: {key: option.get(key) for key in KEYS} | {"nested": summary(option.get(nested) or {}, nested)}
        for name, option in options.items()
    }


@pytest.mark.parametrize(("module", "arguments"), MODULES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_the_documented_options_are_those_of_the_argument_spec(module, arguments):
    assert summary(documented(module), "suboptions") == summary(arguments, "options")
