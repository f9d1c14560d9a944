# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the pages for users show and name is there: examples parse and derive, plays load, names exist."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import subprocess
import sys
from collections import defaultdict

import pytest
import yaml
from ansible_collections.trueip.l4proxy.plugins.filter import forwarder_config, return_path
from ansible_collections.trueip.l4proxy.plugins.module_utils import _cli
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import metrics
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import (
    config,
    defaults,
    health_check,
    service,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents, schema
from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _hosts, _services

from tests.docs import pages
from tests.unit.plugins.plugin_utils.fleet_data import hostvars, view

REPOSITORY = pages.REPOSITORY
ROLES = [path.name for path in sorted((REPOSITORY / "roles").iterdir())]
PAGES = pages.pages()
YAML = [block for path in PAGES for block in pages.blocks(path) if block.language == "yaml"]
PLAYS = [block for block in YAML if isinstance(yaml.safe_load(block.text), list)]
BY_NAME = {"argvalues": PAGES, "ids": [str(path.relative_to(REPOSITORY)) for path in PAGES]}


def services_in(data):
    """Find l4proxy_services in an inventory or in group variables."""
    if isinstance(data, dict):
        if "l4proxy_services" in data:
            return data["l4proxy_services"]
        return next((found for value in data.values() if (found := services_in(value))), None)
    return None


SERVICES = [block for block in YAML if services_in(yaml.safe_load(block.text))]


def test_the_pages_have_what_is_tested_here():
    assert {block.path for block in SERVICES} == {
        "README.md",
        *(f"docs/docsite/rst/{name}.rst" for name in ("operations", "services")),
    }
    assert {"docs/docsite/rst/operations.rst", "roles/forwarder/README.md"} <= {block.path for block in PLAYS}


@pytest.mark.parametrize("block", SERVICES, ids=str)
def test_the_services_that_are_shown_can_be_derived(block):
    services = services_in(yaml.safe_load(block.text))
    for module, host in ((forwarder_config, "a"), (return_path, "b")):
        (derive,) = module.FilterModule().filters().values()
        assert derive(services, view(host, proxies=["a", "a2"]), hostvars())


@pytest.mark.parametrize("block", PLAYS, ids=str)
def test_the_plays_that_are_shown_load(block, tmp_path):
    """As files of a project, beside an inventory with their groups."""
    (tmp_path / "play.yml").write_text(block.text, encoding="utf-8")
    (tmp_path / "inventory.yml").write_text("proxies: {hosts: {a: {}}}\nbackends: {hosts: {b: {}}}\n", encoding="utf-8")
    collections = REPOSITORY / ".build" / "collections"
    env = {**os.environ, "ANSIBLE_HOME": str(tmp_path), "ANSIBLE_COLLECTIONS_PATH": str(collections)}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ansible",
            "playbook",
            "--syntax-check",
            "--inventory",
            str(tmp_path / "inventory.yml"),
            str(tmp_path / "play.yml"),
        ],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def metric_names():
    """The names of all metrics, of a forwarder with one backend."""
    latency = {"buckets": [0], "sum": 0, "count": 0}
    target = defaultdict(int, server="yes", return_path="yes", latency=latency)
    backend = defaultdict(int, name="b", state="up", families={"ipv4": target})
    service = defaultdict(int, name="web", backends=[backend])
    parts = {"reloads": {}, "last_reload": {"ok": True}, "workers": [], "alarms": [], "totals": defaultdict(int)}
    status = defaultdict(int, version="0.1.0", services=[service], **parts)
    return set(re.findall(r"^# TYPE (\w+)", metrics.render(status), re.MULTILINE))


@functools.lru_cache(maxsize=1)
def known_variables():
    """Variables, tags and the documented return values of roles, and metrics: all that may be called by such a name."""
    found = metric_names() | set(_hosts.VARIABLES)
    for path in (REPOSITORY / "playbooks").glob("*.yml"):
        found |= set(re.findall(r"\bl4proxy_\w+\b", path.read_text(encoding="utf-8")))
    for role in ROLES:
        specs = yaml.safe_load((REPOSITORY / f"roles/{role}/meta/argument_specs.yml").read_text(encoding="utf-8"))
        found |= set(specs["argument_specs"]["main"]["options"])
        for path in (REPOSITORY / f"roles/{role}/tasks").glob("*.yml"):
            found |= set(re.findall(rf"\b{role}_\w+\b", path.read_text(encoding="utf-8")))
    for kind in ("modules", "filter"):
        found |= {path.stem for path in (REPOSITORY / "plugins" / kind).glob("*.py")}
    return found


@pytest.mark.parametrize("path", **BY_NAME)
def test_variables_and_tags_that_are_named_exist(path):
    pattern = re.compile(rf"(?<![\w./-])((?:l4proxy|{'|'.join(ROLES)})_[a-z_]+)\b(?!\.json)")
    named = {name for line in pages.code(path) for name in pattern.findall(line)}
    assert named - known_variables() == set()


@functools.lru_cache(maxsize=1)
def subcommands():
    """The options of each subcommand of l4proxy."""
    (choices,) = [action.choices for action in _cli._parser()._actions if action.choices]
    return {name: set(parser._option_string_actions) for name, parser in choices.items()}


@pytest.mark.parametrize("path", **BY_NAME)
def test_commands_that_are_named_exist(path):
    for line in pages.code(path):
        for name, rest in re.findall(r"(?:^|[#$(] ?)l4proxy ([a-z]+)((?: +[^ #|;)]+)*)", line):
            assert name in subcommands(), line
            assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= subcommands()[name], line
        for playbook in re.findall(r"ansible-playbook .*\btrueip\.l4proxy\.(\w+)", line):
            assert (REPOSITORY / "playbooks" / f"{playbook}.yml").exists(), line
        for target in re.findall(r"(?:^|[$] )make ([a-z0-9-]+)", line):
            assert re.search(rf"^{target}:.*## ", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.M), line


def _fields(cls):
    return {one.name for one in dataclasses.fields(cls)}


REFERENCE = [
    ("services.rst", "A service", {"proxies", *_fields(service.Service)}),
    ("services.rst", "A backend", _services.BACKEND_KEYS),
    ("services.rst", "Balancing", defaults.BALANCES),
    ("services.rst", "Limits", _fields(service.Limits)),
    ("services.rst", "Health", _fields(health_check.HealthCheck)),
    ("services.rst", "The forwarder's config", {"schema", *_fields(config.Config)}),
    ("documents.rst", "The document", documents.KEYS),
    ("documents.rst", "A rule", schema.RULE),
    ("documents.rst", "A route", schema.ROUTE),
    ("documents.rst", "A mark", schema.MARK),
    ("documents.rst", "A sysctl", schema.SYSCTL),
    ("documents.rst", "An address", schema.ADDRESS),
]


@pytest.mark.parametrize(("page", "section", "keys"), REFERENCE, ids=[row[1] for row in REFERENCE])
def test_the_reference_has_every_key(page, section, keys):
    assert set(pages.table(REPOSITORY / "docs" / "docsite" / "rst" / page, section)) == set(keys)


DEFAULTS = [
    ("A service", service.Service),
    ("A backend", service.Backend),
    ("Limits", service.Limits),
    ("Health", health_check.HealthCheck),
]


def _spelled(default):
    """A default as it is written in YAML; what is empty is left out."""
    if default in (None, ()):
        return ""
    return str(default).lower() if isinstance(default, bool) else str(default)


@pytest.mark.parametrize(("section", "cls"), DEFAULTS, ids=[row[0] for row in DEFAULTS])
def test_the_reference_has_the_defaults(section, cls):
    table = pages.table(REPOSITORY / "docs" / "docsite" / "rst" / "services.rst", section)
    defaults = {
        one.name: _spelled(one.default)
        for one in dataclasses.fields(cls)
        if one.name in table and one.default is not dataclasses.MISSING
    }
    assert defaults
    assert {name: table[name] for name in defaults} == defaults
