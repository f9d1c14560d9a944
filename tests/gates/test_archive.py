# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everyone builds the same archive, byte for byte, and its version is that of the collection."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gates import environments

# `make package` has installed the tarball there, as a user gets it.
PACKAGE = environments.REPOSITORY / ".build" / "package"
BUILD = """
import os, sys
os.umask(int(sys.argv[2], 8))
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _archive
collection = Path(sys.argv[1], "ansible_collections", "trueip", "l4proxy")
sys.stdout.buffer.write(_archive.archive(_archive.sources(collection)))
"""


def build(python: list[str], collections: Path, umask: str, **options) -> bytes:
    done = subprocess.run([*python, "-c", BUILD, str(collections), umask], capture_output=True, check=True, **options)
    return done.stdout


@pytest.fixture(scope="module")
def shipped() -> bytes:
    return build([sys.executable], PACKAGE, "022")


@pytest.mark.parametrize("name", ["py39", "py313"])
def test_the_archive_does_not_depend_on_python_directory_or_umask(name, shipped, tmp_path):
    elsewhere = tmp_path / "collections"
    # The copies get this umask and new times too.
    command = [
        "sh",
        "-c",
        'umask 077 && cp --recursive --no-preserve=all "$1" "$2"',
        "sh",
        str(PACKAGE),
        str(elsewhere),
    ]
    subprocess.run(command, check=True)
    python, site = environments.ensure(name)
    built = build([str(python)], elsewhere, "077", env=environments.variables(site), cwd=environments.REPOSITORY)
    assert built == shipped


def test_the_archive_and_ansible_galaxy_print_the_same_version(shipped, tmp_path):
    archive = tmp_path / "l4proxy.pyz"
    archive.write_bytes(shipped)
    told = subprocess.run(
        [sys.executable, "-I", archive, "--version"], capture_output=True, text=True, check=True
    ).stdout
    listing = subprocess.run(
        [Path(sys.executable).with_name("ansible-galaxy"), "collection", "list", "--format", "json"],
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(PACKAGE)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    versions = {row["trueip.l4proxy"]["version"] for row in json.loads(listing).values() if "trueip.l4proxy" in row}
    assert versions == {told.split()[1]}
