# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An earlier version of the collection, from this repository's history, from which fleets upgrade."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = ("galaxy.yml", "meta", "plugins", "roles", "playbooks")

#: The commit of version 0.1.0; FROM in the environment names another one.
REVISION = os.environ.get("FROM") or "3326c834"


def unpack(directory: Path, revision: str = REVISION) -> Path:
    """Unpack the collection of ``revision`` into a collections path; return the root of the collection."""
    root = directory / "ansible_collections" / "trueip" / "l4proxy"
    packed = subprocess.check_output(["git", "-C", REPOSITORY, "archive", revision, *SHIPPED])
    with tarfile.open(fileobj=io.BytesIO(packed)) as members:
        members.extractall(root)
    return root
