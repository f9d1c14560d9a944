# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which folder imports which, where unit tests are, how long a file may be; and what CONTRIBUTING says of that."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "plugins"
MODULE_UTILS = PLUGINS / "module_utils"

#: For each folder of an engine the other folders that it imports, and may import. "." is the engine's own top level.
IMPORTS = {
    "_forwarder": {
        ".": set(),
        "loop": set(),
        "config": set(),
        "admission": {"counters", "loop"},
        "counters": set(),
        "backends": {"admission", "config", "counters", "loop"},
        "tcp": {"admission", "backends", "config", "loop"},
        "udp": {"admission", "backends", "config", "loop"},
        "admin": {"backends", "config", "counters", "loop"},
        "process": {"admin", "admission", "backends", "config", "counters", "loop", "tcp", "udp"},
    },
    "_routing": {
        ".": set(),
        "document": {"."},
        "netlink": {".", "document"},
        "host": {".", "document"},
        "marks": {".", "document", "host"},
        "datapath": {".", "document", "host", "netlink"},
        "reconcile": {".", "datapath", "document", "host", "marks", "netlink"},
        "keeper": {".", "datapath", "document", "host", "marks", "netlink", "reconcile"},
        "doctor": {".", "datapath", "document", "host", "marks", "netlink", "reconcile"},
    },
}
#: What both engines may import besides themselves and the standard library; pyroute2 only in ``_routing/netlink``.
SHARED = {"_version", "_shared"}

#: Tests of several files, in the folder of what these have in common.

SEVERAL_FILES = {"filter/test_filters.py", "module_utils/_routing/test_properties.py"}
SEVERAL_FILES |= {f"module_utils/_forwarder/test_{name}.py" for name in ("config_properties", "growth")}


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

MAX_LINES = 400


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(path: Path) -> Iterator[tuple[str, ...]]:
    """The modules that a file of ``module_utils`` imports, each as the parts of its path below ``module_utils``.

    Absolute imports come as ("", name of the top-level package).
    """
    package = path.relative_to(MODULE_UTILS).parent.parts
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (("", alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield ("", node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] + tuple(node.module.split(".") if node.module else ())
            is_package = MODULE_UTILS.joinpath(*base).is_dir()
            yield from ((*base, alias.name) for alias in node.names) if is_package else [base]


def folder_of(module: tuple[str, ...]) -> str:
    """``("_forwarder", "tcp", "relay")`` is in tcp, ``("_routing", "errors")`` at the top level."""
    return module[1] if len(module) > 2 or MODULE_UTILS.joinpath(*module[:2]).is_dir() else "."


@pytest.mark.parametrize("engine", IMPORTS)
def test_each_folder_has_a_docstring_and_imports_what_the_table_says_which_has_no_circle(engine):
    imports = {folder: set() for folder in IMPORTS[engine]}
    for path in (MODULE_UTILS / engine).rglob("*.py"):
        folder = folder_of(path.relative_to(MODULE_UTILS).with_suffix("").parts)
        imports[folder] |= {folder_of(module) for module in imported_modules(path) if module[0] == engine} - {folder}
        if path.name == "__init__.py":
            assert ast.get_docstring(parse(path)), path
    assert imports == IMPORTS[engine]
    graphlib.TopologicalSorter(IMPORTS[engine]).prepare()


@pytest.mark.parametrize("engine", IMPORTS)
def test_an_engine_imports_neither_ansible_nor_the_other_engine(engine):
    for path in (MODULE_UTILS / engine).rglob("*.py"):
        libraries = {"pyroute2"} if path.parent.name == "netlink" else set()
        for module in imported_modules(path):
            if module[0] == "":
                assert module[1] in sys.stdlib_module_names | libraries, f"{path}: {module[1]}"
            else:
                assert module[0] in SHARED | {engine}, f"{path}: {'.'.join(module)}"


def test_the_shared_folder_imports_only_itself_and_the_standard_library():
    for path in (MODULE_UTILS / "_shared").rglob("*.py"):
        for module in imported_modules(path):
            assert module[0] == "_shared" or module[1] in sys.stdlib_module_names, f"{path}: {'.'.join(module)}"


def test_no_module_imports_the_command_line():
    """Ansible ships what a module imports: each task would carry both engines."""
    for path in PLUGINS.rglob("*.py"):
        imports = [node for node in ast.walk(parse(path)) if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = [alias.name for node in imports for alias in node.names]
        names += [getattr(node, "module", None) or "" for node in imports]
        assert "_cli" not in ".".join(names).split("."), path


def test_no_file_is_longer_than_400_lines():
    paths = [*PLUGINS.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > MAX_LINES} == {}


def test_a_unit_test_is_in_the_folder_of_the_file_that_it_tests_and_named_after_it():
    unit = ROOT / "tests" / "unit" / "plugins"
    lost = set()
    for path in unit.rglob("test_*.py"):
        place = path.relative_to(unit)
        tested = {f"test_{file.stem}" for file in (PLUGINS / place.parent).glob("*.py")}
        if not any(path.stem == name or path.stem.startswith(f"{name}_") for name in tested):
            lost.add(str(place))
    assert lost == SEVERAL_FILES


@pytest.mark.parametrize("engine", IMPORTS)
def test_contributing_draws_the_table(engine):
    picture = re.search(rf"`plugins/module_utils/{engine}`:\n\n```mermaid\n(.*?)```", CONTRIBUTING, re.DOTALL)[1]
    arrows = dict(re.findall(r"^    (\w+) --> (.+)$", picture, re.MULTILINE))
    drawn = {folder: set(others.replace("errors", ".").split(" & ")) for folder, others in arrows.items()}
    assert drawn == {folder: others for folder, others in IMPORTS[engine].items() if others}


def test_each_path_in_contributing_exists():
    code = re.findall(r"```(?:text|console)\n(.*?)```", CONTRIBUTING, re.DOTALL)
    words = re.findall(r"[\w.@/-]+", " ".join(code + re.findall(r"`([^`\n]+)`", CONTRIBUTING)))
    paths = {word for word in words if re.search(r"\w/\w|\.(py|yml|md)$", word)}
    assert len(paths) > 50
    # Some are relative to an engine's folder, to a role or to a folder of tests.
    bases = [ROOT, MODULE_UTILS, MODULE_UTILS / "_forwarder", ROOT / "roles" / "forwarder", ROOT / "tests" / "kernel"]
    missing = [path for path in paths if not any((base / path).exists() for base in bases)]
    assert [path for path in missing if not path.startswith(".build")] == []
