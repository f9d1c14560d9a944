# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each top-level key of the forwarder's config has a variable of the role, with the same default, choices and limits.

Keys of services and backends have no variables; tests/unit/docs compares them with the guide.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import config, defaults, settings
from jinja2 import Template
from jinja2.nativetypes import NativeEnvironment

from ..plugins.module_utils._forwarder.config.config_data import minimal
from .test_variables import ROOT, options, read

ROLE = ROOT / "roles" / "forwarder"
SPECS = options(ROLE)
DEFAULTS = read(ROLE / "defaults" / "main.yml")
TEMPLATES = read(ROLE / "vars" / "main.yml")["_forwarder_settings"]
SECTIONS = {"log": settings.Log, "admin": settings.Admin, "metrics": settings.Metrics}
#: Keys without a variable: derived from the fleet, or (the socket) from the unit.
DERIVED = {"proxy_id", "services", "source_ports", "admin.socket", "virtual_addresses"}

DOCUMENT = minimal()


def names(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


#: Keys of a section are written ``section.key``.
SECTION_KEYS = {f"{name}.{key}" for name, cls in SECTIONS.items() for key in names(cls)}
CHOSEN = sorted((names(config.Config) - set(SECTIONS) | SECTION_KEYS) - DERIVED)


def variable(key: str) -> str:
    return "l4proxy_hash_table" if key == "hash_table" else f"forwarder_{key.replace('.', '_')}"


def loaded(**variables: Any) -> config.Config:
    """Return the config that the role writes with its defaults and these variables."""

    def rendered(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rendered(inner) for key, inner in value.items()}
        return NativeEnvironment().from_string(value).render({**DEFAULTS, **variables})

    return config.load({**DOCUMENT, **{key: value for key, value in rendered(TEMPLATES).items() if value != ""}})


def flat(settings_: config.Config) -> dict[str, Any]:
    """Return {key: value} of a config, without the derived keys."""
    return {key: functools.reduce(getattr, key.split("."), settings_) for key in CHOSEN}


def test_the_defaults_of_the_role_are_those_of_the_config():
    assert loaded() == config.load(DOCUMENT)


CHOICES = {
    "hash_table": defaults.HASH_TABLES,
    "healthy_needs": defaults.HEALTHY_NEEDS,
    "log.format": defaults.LOG_FORMATS,
    "log.level": defaults.LOG_LEVELS,
}


#: key: a value that differs from the default, and one that the config refuses
VALUES = {
    "drain_timeout": (45, 100_000),
    "drain_memory": (512, "much"),
    "deny_files": (["/srv/bans"], "/srv/bans"),
    "never_ban": (["192.0.2.0/24"], "192.0.2.0/24"),
    "hash_table": ("maglev", "table"),
    "healthy_needs": ("each", "all"),
    "workers": (3, defaults.WORKERS.high + 1),
    "log.format": ("logfmt", "xml"),
    "log.level": ("error", "loud"),
    "admin.group": ("adm", "a group"),
    "metrics.listen": ("127.0.0.1:9110", "9110"),
}


@pytest.mark.parametrize("key", CHOSEN)
def test_each_key_has_a_variable_that_has_its_choices_sets_it_alone_and_reports_a_refused_value(key):
    assert tuple(SPECS[variable(key)].get("choices", ())) == CHOICES.get(key, ())
    value, refused = VALUES[key]
    expected = tuple(value) if isinstance(value, list) else value
    assert flat(loaded(**{variable(key): value})) == {**flat(loaded()), key: expected}
    with pytest.raises(config.ConfigError) as refusal:
        loaded(**{variable(key): refused})
    assert [error.partition(":")[0] for error in refusal.value.errors] == [key]


@pytest.mark.parametrize(("timeout", "seconds"), [("", 40), (None, 40), (0, 10), (60, 70), ("60", 70)])
def test_systemd_waits_longer_for_a_stop_than_connections_have(timeout, seconds):
    variables = {"forwarder_drain_timeout": timeout}
    expression = read(ROLE / "vars" / "main.yml")["_forwarder_stop_timeout"]
    stop_timeout = NativeEnvironment().from_string(expression).render(variables)
    unit = (ROLE / "templates" / "l4proxy-forwarder.service.j2").read_text(encoding="utf-8")
    (line,) = [line for line in unit.splitlines() if line.startswith("TimeoutStopSec=")]
    assert Template(line).render(_forwarder_stop_timeout=stop_timeout) == f"TimeoutStopSec={seconds}"
