# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the ``l4proxy`` archive: the engines of this collection as one executable zip.

The bytes depend on the sources alone: names are sorted, times and permissions fixed, and nothing is compressed, because
zlib's output differs between its versions.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

import yaml

PACKAGE = "l4proxy"

# -I: neither the caller's environment nor the working directory may change what is imported.
SHEBANG = b"#!/usr/bin/python3 -I\n"
MAIN = b"from l4proxy._cli import main\n\nraise SystemExit(main())\n"

# The earliest time a zip can carry (APPNOTE.TXT 4.4.6), and a regular file of mode 0644 made on Unix.
EPOCH = (1980, 1, 1, 0, 0, 0)
UNIX = 3
MODE = 0o100644 << 16

# Imported by modules alone: it needs Ansible, which a host does not have.
ONLY_FOR_MODULES = ("_host_module.py",)


def collection_version(collection: Path) -> str:
    """Return the collection's version: from MANIFEST.json if it is installed, from galaxy.yml in a checkout."""
    manifest = collection / "MANIFEST.json"
    if manifest.exists():
        return str(json.loads(manifest.read_text(encoding="utf-8"))["collection_info"]["version"])
    return str(yaml.safe_load((collection / "galaxy.yml").read_text(encoding="utf-8"))["version"])


def sources(collection: Path) -> list[tuple[str, bytes]]:
    """Return the Python files below ``plugins/module_utils``; ``_version.py`` has the collection's version.

    :returns: (name in the archive, content), sorted by name.
    """
    root = collection / "plugins" / "module_utils"
    paths = (path for path in root.rglob("*.py") if path.name not in ONLY_FOR_MODULES)
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
    files["_version.py"] = f"VERSION = {collection_version(collection)!r}\n".encode("ascii")
    return sorted((f"{PACKAGE}/{name}", content) for name, content in files.items())


def archive(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Return an executable archive of files."""
    packed = io.BytesIO()
    packed.write(SHEBANG)
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_STORED) as target:
        for name, content in [*files, ("__main__.py", MAIN)]:
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system = UNIX
            entry.external_attr = MODE
            target.writestr(entry, content)
    return packed.getvalue()


def archive_name(version: str, content: bytes) -> str:
    """Return the name of an archive, from version and content: ``l4proxy-1.2.3-0a1b2c3d.pyz``."""
    return f"{PACKAGE}-{version}-{hashlib.sha256(content).hexdigest()[:8]}.pyz"
