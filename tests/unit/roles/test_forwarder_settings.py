# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The config's own keys and the variables of the role forwarder: one for each, with the same default and choices.

The keys of services and backends need no variables: the filters pass them on, and what the reference says of them is
compared in tests/unit/docs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import config, defaults, settings
from jinja2.nativetypes import NativeEnvironment

from tests.unit.roles.test_variables import ROOT, options, read

ROLE = ROOT / "roles" / "forwarder"
SPECS = options(ROLE)
DEFAULTS = read(ROLE / "defaults" / "main.yml")
TEMPLATES = read(ROLE / "vars" / "main.yml")["_forwarder_settings"]
SECTIONS = {"log": settings.Log, "admin": settings.Admin, "metrics": settings.Metrics}
#: Not the user's to choose: they follow from the fleet, or (the socket) from the unit.
DERIVED = {"proxy_id", "services", "source_ports", "admin.socket"}
SERVICE = {
    "name": "web",
    "listen": [{"address": "0.0.0.0", "port": 80}],
    "backends": [{"name": "b", "ipv4": "198.18.0.21", "port": 80}],
}


def keys() -> set[str]:
    """Every key of the config, those of a section as ``section.key``."""
    top = {one.name for one in dataclasses.fields(config.Config)}
    inner = {f"{name}.{one.name}" for name, cls in SECTIONS.items() for one in dataclasses.fields(cls)}
    return (top - set(SECTIONS)) | inner


CHOSEN = sorted(keys() - DERIVED)


def variable(key: str) -> str:
    return f"forwarder_{key.replace('.', '_')}"


def loaded(**variables: Any) -> config.Config:
    """The config the role would write, with its defaults and these variables."""

    def rendered(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rendered(one) for key, one in value.items()}
        return NativeEnvironment().from_string(value).render({**DEFAULTS, **variables})

    return config.load({"schema": config.SCHEMA, "proxy_id": 11, "services": [SERVICE], **rendered(TEMPLATES)})


def at(found: config.Config, key: str) -> Any:
    for name in key.split("."):
        found = getattr(found, name)
    return found


def test_every_key_has_its_variable():
    assert [variable(key) for key in CHOSEN if variable(key) not in SPECS] == []


def test_the_roles_defaults_are_the_configs():
    assert loaded() == config.load({"schema": config.SCHEMA, "proxy_id": 11, "services": [SERVICE]})


CHOICES = {"log.format": defaults.LOG_FORMATS, "log.level": defaults.LOG_LEVELS}


@pytest.mark.parametrize("key", CHOSEN)
def test_the_choices_are_the_configs(key):
    assert tuple(SPECS[variable(key)].get("choices", ())) == CHOICES.get(key, ())


OTHERS = {
    "drain_timeout": 45,
    "workers": 3,
    "log.format": "logfmt",
    "log.level": "error",
    "admin.group": "adm",
    "metrics.listen": "127.0.0.1:9110",
}


@pytest.mark.parametrize("key", CHOSEN)
def test_a_variable_arrives_at_its_key_and_nowhere_else(key):
    found, plain = loaded(**{variable(key): OTHERS[key]}), loaded()
    assert {one for one in CHOSEN if at(found, one) != at(plain, one)} == {key}
    assert at(found, key) == OTHERS[key]


WRONG = {
    "drain_timeout": 100_000,
    "workers": defaults.WORKERS.high + 1,
    "log.format": "xml",
    "log.level": "loud",
    "admin.group": "a group",
    "metrics.listen": "9110",
}


@pytest.mark.parametrize("key", CHOSEN)
def test_a_wrong_value_is_refused_under_its_key(key):
    with pytest.raises(config.ConfigError) as refusal:
        loaded(**{variable(key): WRONG[key]})
    assert [error.partition(":")[0] for error in refusal.value.errors] == [key]
