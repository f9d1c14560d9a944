# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find or create an interpreter of each supported Python version.

A Debian release has one Python version. If this machine lacks a version, a minimal root of the release that has it is
created once in .build/python (half a minute). A wrapper runs its interpreter with chroot: same paths, processes and
network, but /usr of the other release. That needs root.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.lab import image

REPOSITORY = image.REPOSITORY
ROOTS = REPOSITORY / ".build" / "python"
RELEASES = {"3.9": "bullseye", "3.11": "bookworm", "3.13": "trixie"}
PACKAGES = ("python3", "iproute2")

# In the root, processes, devices and the checkout have the same paths as outside.
WRAPPER = """#!/bin/sh
exec {sudo}unshare --mount --propagation private sh -ec '
    root=$1 directory=$2
    shift 2
    for path in /proc /sys /dev /run /tmp {repository}; do
        mkdir -p "$root$path"
        mount --rbind "$path" "$root$path"
    done
    exec chroot "$root" /usr/bin/env --chdir="$directory" /usr/bin/python3 "$@"' sh {root} "$PWD" "$@"
"""


def find(version: str) -> Path | None:
    """Return this machine's interpreter of a version such as ``3.9``; None if it has none."""
    on_path = shutil.which(f"python{version}")
    managed = sorted(glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}.*/bin/python{version}")))
    return next(
        (found for path in ("/usr/bin/python3", on_path, *managed) if path and (found := _is(path, version))), None
    )


def _is(path: str, version: str) -> Path | None:
    """Return the path of the interpreter behind a name; None if it does not run or has another version.

    The shim of a version manager may not run.
    """
    question = "import sys, zlib, ssl; print(*sys.version_info[:2], sep='.'); print(sys.executable)"
    try:
        done = subprocess.run([path, "-c", question], capture_output=True, text=True, check=False)
    except OSError:
        return None
    told = done.stdout.splitlines()
    return Path(told[1]) if done.returncode == 0 and told[0] == version else None


def ensure(version: str) -> Path:
    """Return an interpreter of a version; create one from a Debian release if this machine has none.

    :raises RuntimeError: no known Debian release has it, or the root cannot be created.
    """
    found = find(version)
    if found:
        return found
    if version not in RELEASES:
        raise RuntimeError(f"this machine has no Python {version}, and no known Debian release has it")
    wrapper = ROOTS / version / f"python{version}"
    if not wrapper.exists():
        _make(version, wrapper)
    return wrapper


def _make(version: str, wrapper: Path) -> None:
    root, release = wrapper.parent / "root", RELEASES[version]
    print(f"creating a root of Debian {release} for Python {version} (once, half a minute)", flush=True)
    wrapper.parent.mkdir(parents=True, exist_ok=True)
    make_root(release, root, PACKAGES)
    text = WRAPPER.format(sudo=_sudo(), repository=REPOSITORY, root=root)
    wrapper.write_text(text, encoding="utf-8")
    wrapper.chmod(0o755)


def _sudo() -> str:
    return "" if os.geteuid() == 0 else "sudo --preserve-env "


def make_root(release: str, root: Path, packages: Iterable[str], variant: str = "minbase") -> None:
    """Install packages of a Debian release into the directory ``root``; ``variant`` as in mmdebstrap(1)."""
    command = ["mmdebstrap", f"--variant={variant}", "--mode=root", f"--include={','.join(packages)}"]
    command += [f"--aptopt={option}" for option in image.apt_options()]
    subprocess.run([*_sudo().split(), "rm", "-rf", str(root)], check=True)
    subprocess.run(
        [*_sudo().split(), *command, release, str(root), *image.sources(release)], check=True, capture_output=True
    )


def main() -> int:
    """Print this machine's interpreter of a version; return 1 if it has none."""
    found = find(sys.argv[1])
    if found:
        print(found)
    return 0 if found else 1


if __name__ == "__main__":
    raise SystemExit(main())
