# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Python of any version we support: this machine's own, or that of the Debian release which has it.

Debian has one Python a release, and no other package index has interpreters. So where the machine lacks a version, a
small root of that release is made once (.build/python, half a minute) and entered by a wrapper that takes the place of
the interpreter: same paths, same processes, same network, only /usr is another release's. Entering needs root.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.lab import image

REPOSITORY = image.REPOSITORY
ROOTS = REPOSITORY / ".build" / "python"
RELEASES = {"3.9": "bullseye", "3.11": "bookworm", "3.13": "trixie"}
PACKAGES = ("python3", "iproute2")

# The root sees the machine's processes, devices and the checkout, at the same paths.
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
    """Return this machine's interpreter of a version such as ``3.9``, None where it has none."""
    on_path = shutil.which(f"python{version}")
    managed = sorted(glob.glob(os.path.expanduser(f"~/.pyenv/versions/{version}.*/bin/python{version}")))
    return next(
        (found for path in ("/usr/bin/python3", on_path, *managed) if path and (found := _is(path, version))), None
    )


def _is(path: str, version: str) -> Path | None:
    """Return the interpreter itself behind a name, if it runs at all (a version manager's shim may not) and fits."""
    question = "import sys, zlib, ssl; print(*sys.version_info[:2], sep='.'); print(sys.executable)"
    try:
        done = subprocess.run([path, "-c", question], capture_output=True, text=True, check=False)
    except OSError:
        return None
    told = done.stdout.splitlines()
    return Path(told[1]) if done.returncode == 0 and told[0] == version else None


def ensure(version: str) -> Path:
    """Return an interpreter of a version, made out of a Debian release where this machine has none.

    :raises RuntimeError: no release of Debian that we know has it, or the root cannot be made.
    """
    found = find(version)
    if found:
        return found
    if version not in RELEASES:
        raise RuntimeError(f"this machine has no Python {version}, and no Debian release is known to have it")
    wrapper = ROOTS / version / f"python{version}"
    if not wrapper.exists():
        _make(version, wrapper)
    return wrapper


def _make(version: str, wrapper: Path) -> None:
    root, release = wrapper.parent / "root", RELEASES[version]
    print(f"making a root of Debian {release} for Python {version} (once, half a minute)", flush=True)
    sudo = "" if os.geteuid() == 0 else "sudo --preserve-env "
    wrapper.parent.mkdir(parents=True, exist_ok=True)
    command = ["mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES)}"]
    command += [f"--aptopt={option}" for option in image.apt_options()]
    subprocess.run([*sudo.split(), "rm", "-rf", str(root)], check=True)
    subprocess.run(
        [*sudo.split(), *command, release, str(root), *image.sources(release)], check=True, capture_output=True
    )
    text = WRAPPER.format(sudo=sudo, repository=REPOSITORY, root=root)
    wrapper.write_text(text, encoding="utf-8")
    wrapper.chmod(0o755)


def main() -> int:
    """Print this machine's interpreter of a version; 1 where it has none."""
    found = find(sys.argv[1])
    if found:
        print(found)
    return 0 if found else 1


if __name__ == "__main__":
    raise SystemExit(main())
