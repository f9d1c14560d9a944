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
# First tiers ask `healthy` every second. Python needs 7 ms to start, and with `site` and a zip archive 20 ms. So the
# source of that command follows the shell's part, and runs without both; it leaves to the rest what it does not know.
SEPARATOR = b"\n# ---\n"
BEGINNING = (
    b"""#!/bin/sh
[ "$1" = healthy ] && exec /usr/bin/python3 -ISc \
  'import sys;exec(open(sys.argv[1],"rb").read(16384).split(b"\\n# ---\\n")[1])' "$0" "$@"
exec /usr/bin/python3 -I "$0" "$@\""""
    + SEPARATOR
)
QUICK = "_healthy.py"  # in module_utils
RUN_QUICK = b"""
import posix

status = main(sys.argv[3:])
if status is None:
    posix.execv("/usr/bin/python3", ["python3", "-I", *sys.argv[1:]])
sys.stdout.flush()
posix._exit(status)
"""
MAIN = b"""try:
    with open("/proc/self/comm", "w") as stream:
        stream.write("l4proxy")  # for ps(1) and top(1)
except OSError:
    pass
from l4proxy._cli import main

raise SystemExit(main())
"""

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
    files = list(files)
    packed = io.BytesIO()
    quick = dict(files).get(f"{PACKAGE}/{QUICK}", b"status = None\n")
    packed.write(BEGINNING + quick + RUN_QUICK + SEPARATOR)
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
