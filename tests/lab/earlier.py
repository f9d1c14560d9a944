# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other versions of the collection for upgrades: earlier ones from this repository's history, and a newer one."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = ("galaxy.yml", "meta", "plugins", "roles", "playbooks")

#: The commit of version 0.1.0; FROM in the environment names another one.
REVISION = os.environ.get("FROM") or "3326c834"
NEWER = "0.9.9"


def unpack(directory: Path, revision: str = REVISION) -> Path:
    """Unpack the collection of ``revision`` into a collections path; return the root of the collection."""
    root = directory / "ansible_collections" / "trueip" / "l4proxy"
    packed = subprocess.check_output(["git", "-C", REPOSITORY, "archive", revision, *SHIPPED])
    with tarfile.open(fileobj=io.BytesIO(packed)) as members:
        members.extractall(root)
    return root


def newer(directory: Path) -> Path:
    """A collections path with this checkout under the version NEWER."""
    root = directory / "ansible_collections" / "trueip" / "l4proxy"
    root.mkdir(parents=True)
    for name in SHIPPED:
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, root / name)
    galaxy = yaml.safe_load((root / "galaxy.yml").read_text(encoding="utf-8"))
    (root / "galaxy.yml").write_text(yaml.safe_dump({**galaxy, "version": NEWER}), encoding="utf-8")
    return directory
