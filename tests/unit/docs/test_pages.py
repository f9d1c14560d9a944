# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pages for users: the inventories and plays they show work, and every name, key and default they mention exists."""

from __future__ import annotations

import dataclasses
import functools
import inspect
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
    health_agent,
    health_check,
    health_exchange,
    kernel_datapath,
    service,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import probe_results
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.datapath.model import NAME as DATAPATH_TABLE
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents, schema, service_schema
from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _datapath, _hosts, _services

from tests.docs import pages
from tests.unit.plugins.plugin_utils.fleet_data import hostvars, view

REPOSITORY = pages.REPOSITORY
ROLES = [path.name for path in sorted((REPOSITORY / "roles").iterdir())]
PAGES = pages.pages()
YAML = [block for path in PAGES for block in pages.blocks(path) if block.language == "yaml"]
PLAYS = [block for block in YAML if isinstance(yaml.safe_load(block.text), list)]
EACH_PAGE = {"argvalues": PAGES, "ids": [str(path.relative_to(REPOSITORY)) for path in PAGES]}


def services_in(data):
    """Return the value of l4proxy_services in an inventory or in group variables, or None."""
    if isinstance(data, dict):
        if "l4proxy_services" in data:
            return data["l4proxy_services"]
        return next((found for value in data.values() if (found := services_in(value))), None)
    return None


HEALTH_EXAMPLES = pages.literals(REPOSITORY / "docs" / "docsite" / "rst" / "health.rst", "Examples")
SERVICES = [block for block in YAML if services_in(yaml.safe_load(block.text))]


def test_the_pages_show_services_and_plays():
    guides = {f"docs/docsite/rst/{name}.rst" for name in ("health", "operations", "services", "udp")}
    assert {block.path for block in SERVICES} == {"README.md", *guides}
    assert {"docs/docsite/rst/operations.rst", "roles/forwarder/README.md"} <= {block.path for block in PLAYS}


@pytest.mark.parametrize("block", SERVICES, ids=str)
def test_documents_can_be_derived_from_each_list_of_services(block):
    services = services_in(yaml.safe_load(block.text))
    for module, host in ((forwarder_config, "a"), (return_path, "b")):
        (derive,) = module.FilterModule().filters().values()
        assert derive(services, view(host, proxies=["a", "a2"]), hostvars())


@pytest.mark.parametrize("name", HEALTH_EXAMPLES)
def test_a_config_can_be_derived_from_each_example_of_a_health_check(name):
    protocol, health = "udp" if name == "DNS" else "tcp", yaml.safe_load(HEALTH_EXAMPLES[name])
    service = {"name": "s", "protocol": protocol, "listen": ["0.0.0.0:80"], "backends": ["b:80"], "health": health}
    (derive,) = forwarder_config.FilterModule().filters().values()
    assert derive([service], view("a", proxies=["a", "a2"]), hostvars())


def test_troubleshooting_has_every_reason_of_a_failed_health_check():
    page = REPOSITORY / "docs" / "docsite" / "rst" / "troubleshooting.rst"
    section = pages.section_of(page, "A backend is down, but its port is open")
    rows = re.findall(r"^   \* - (``.*)", section, re.MULTILINE)
    reasons = {text for row in rows for text in re.findall("``(.+?)``", row)}
    known = {probe_results.name(number) for number in range(probe_results.CERTIFICATE)}
    assert reasons - known == {"certificate …"}
    assert {text for text in probe_results._TEXTS.values() if not text.startswith("certificate")} <= reasons


def test_services_has_every_option_that_the_kernel_datapath_refuses():
    page = REPOSITORY / "docs" / "docsite" / "rst" / "services.rst"
    rows = re.findall(r"^   \* - refused\n     - (.*)", pages.section_of(page, "Datapath"), re.MULTILINE)
    named = {text.partition(":")[0] for row in rows for text in re.findall("``(.+?)``", row)}
    refused = set(re.findall(r'^ +\("([a-z_.]+)", ', inspect.getsource(kernel_datapath), re.MULTILINE))
    assert len(refused) > 10
    assert refused - named == set()


@pytest.mark.parametrize("block", PLAYS, ids=str)
def test_ansible_loads_each_play(block, tmp_path):
    (tmp_path / "play.yml").write_text(block.text, encoding="utf-8")
    (tmp_path / "inventory.yml").write_text("proxies: {hosts: {a: {}}}\nbackends: {hosts: {b: {}}}\n", encoding="utf-8")
    collections = str(REPOSITORY / ".build" / "collections")
    command = [sys.executable, "-m", "ansible", "playbook", "--syntax-check", "--inventory=inventory.yml", "play.yml"]
    env = {**os.environ, "ANSIBLE_HOME": str(tmp_path), "ANSIBLE_COLLECTIONS_PATH": collections}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def metric_names():
    """Return the names of all metrics."""
    latency = {"buckets": [0], "sum": 0, "count": 0}
    target = defaultdict(int, server="yes", return_path="yes", latency=latency)
    backend = defaultdict(int, name="b", state="up", families={"ipv4": target})
    service = defaultdict(int, name="web", failed={}, backends=[backend])
    parts = {
        "reloads": {},
        "last_reload": {"ok": True},
        "workers": [],
        "old_generations": [],
        "alarms": [],
        "denied": {"files": {"/srv/bans": {"networks": 0, "error": None}}},
        "totals": defaultdict(int),
    }
    status = defaultdict(int, version="0.1.0", services=[service], **parts)
    return set(re.findall(r"^# TYPE (\w+)", metrics.render(status), re.MULTILINE))


@functools.lru_cache(maxsize=1)
def known_names():
    """Return all variables and tags of roles and playbooks, metrics, modules and filters, and the table of nft."""
    names = metric_names() | set(_hosts.VARIABLES) | {DATAPATH_TABLE}
    for path in (REPOSITORY / "playbooks").glob("*.yml"):
        names |= set(re.findall(r"\bl4proxy_\w+\b", path.read_text(encoding="utf-8")))
    for role in ROLES:
        specs = yaml.safe_load((REPOSITORY / f"roles/{role}/meta/argument_specs.yml").read_text(encoding="utf-8"))
        names |= set(specs["argument_specs"]["main"]["options"])
        for path in (REPOSITORY / f"roles/{role}/tasks").glob("*.yml"):
            names |= set(re.findall(rf"\b{role}_\w+\b", path.read_text(encoding="utf-8")))
    for kind in ("modules", "filter"):
        names |= {path.stem for path in (REPOSITORY / "plugins" / kind).glob("*.py")}
    return names


@pytest.mark.parametrize("path", **EACH_PAGE)
def test_each_variable_and_tag_on_a_page_exists(path):
    pattern = re.compile(rf"(?<![\w./-])((?:l4proxy|{'|'.join(ROLES)})_[a-z_]+)\b(?!\.json)")
    named = {name for line in pages.code(path) for name in pattern.findall(line)}
    assert named - known_names() == set()


@functools.lru_cache(maxsize=1)
def subcommands():
    """Return {subcommand of l4proxy: its options}."""
    (choices,) = [action.choices for action in _cli._parser()._actions if action.choices]
    return {name: set(parser._option_string_actions) for name, parser in choices.items()}


@pytest.mark.parametrize("path", **EACH_PAGE)
def test_each_command_playbook_and_make_target_on_a_page_exists(path):
    for line in pages.code(path):
        for name, rest in re.findall(r"(?:^|[#$(] ?)l4proxy ([a-z]+)((?: +[^ #|;)]+)*)", line):
            assert name in subcommands(), line
            assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= subcommands()[name], line
        for playbook in re.findall(r"ansible-playbook .*\btrueip\.l4proxy\.(\w+)", line):
            assert (REPOSITORY / "playbooks" / f"{playbook}.yml").exists(), line
        for target in re.findall(r"(?:^|[$] )make ([a-z0-9-]+)", line):
            assert re.search(rf"^{target}:.*## ", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.M), line


def _defaults(cls):
    """Return {field: default as written in YAML, or None if the field is required}."""
    values = {field.name: field.default for field in dataclasses.fields(cls)}
    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}
    texts |= {
        name: ", ".join(value or ()) for name, value in values.items() if value is None or isinstance(value, tuple)
    }
    return {name: None if values[name] is dataclasses.MISSING else text for name, text in texts.items()}


SERVICE, BACKEND, LIMITS = _defaults(service.Service), _defaults(service.Backend), _defaults(service.Limits)
HEALTH, AGENT = _defaults(health_check.HealthCheck), _defaults(health_agent.HealthAgent)
BACKEND["enabled"], SERVICE["log_start"], SERVICE["log_every"] = "true", "false", "0"  # dump() leaves these out
TLS, HTTP = _defaults(health_exchange.HealthTls), _defaults(health_exchange.HealthHttp)
#: page, section, its keys, and the defaults that its table must give
REFERENCE = [
    ("services", "A service", {"proxies", *SERVICE}, SERVICE),
    ("services", "A backend", _services.BACKEND_KEYS, BACKEND),
    ("services", "Balancing", defaults.BALANCES, {}),
    ("services", "Balancing by client address", defaults.HASH_TABLES, {}),
    ("services", "Datapath", _datapath.DATAPATHS, {}),
    ("services", "Limits", LIMITS, LIMITS),
    ("health", "Keys", HEALTH, HEALTH),
    ("health", "TLS", TLS, TLS),
    ("health", "HTTP", HTTP, HTTP),
    ("health", "Agents", AGENT, AGENT),
    ("services", "The forwarder's config", {"schema", *_defaults(config.Config)}, {}),
    ("documents", "The document", documents.KEYS, {}),
    ("documents", "A rule", schema.RULE, {}),
    ("documents", "A route", schema.ROUTE, {}),
    ("documents", "A mark", schema.MARK, {}),
    ("documents", "A sysctl", schema.SYSCTL, {}),
    ("documents", "An address", schema.ADDRESS, {}),
    ("documents", "An announced address", schema.ANNOUNCED, {}),
    ("documents", "A service", service_schema.SERVICE, {}),
    ("documents", "A backend of a service", service_schema.SERVER, {}),
    ("documents", "Limits of a service", service_schema.LIMITS, {}),
]


@pytest.mark.parametrize(("page", "section", "keys", "values"), REFERENCE, ids=[row[1] for row in REFERENCE])
def test_a_reference_table_has_every_key_with_its_default(page, section, keys, values):
    table = pages.table(REPOSITORY / "docs" / "docsite" / "rst" / f"{page}.rst", section)
    assert set(table) == set(keys)
    given = {key: value for key, value in values.items() if key in table and value is not None}
    assert bool(given) == bool(values)
    assert {key: table[key] for key in given} == given
