# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other environments than .build/venv: other versions of Python and ansible-core, tools with conflicting requirements.

    python -m tests.gates.environments py313 -m pytest tests/unit    runs the Python of that environment

An environment is a Python and the pinned packages of requirements/NAME.txt. The pip of .build/venv installs them into a
separate directory, so the interpreter needs no pip, no venv module and no network.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.gates import interpreters

REPOSITORY = interpreters.REPOSITORY
SITES = REPOSITORY / ".build" / "site"
#: The Python version of an environment; others use that of .build/venv.
PYTHONS = {"py39": "3.9", "py313": "3.13"}


def ensure(name: str) -> tuple[Path, Path]:
    """Return (interpreter, directory of packages) of an environment; install it if it is missing or outdated."""
    requirements = REPOSITORY / "requirements" / f"{name}.txt"
    with requirements.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # stages that run at the same time may need the same environment
        return _ensure(name, requirements)


def _ensure(name: str, requirements: Path) -> tuple[Path, Path]:
    own = ".".join(map(str, sys.version_info[:2]))
    version = PYTHONS.get(name, own)
    python = Path(sys.executable) if version == own else interpreters.ensure(version)
    site, stamp = SITES / name, SITES / f"{name}.stamp"
    wanted = hashlib.sha256(requirements.read_bytes() + version.encode()).hexdigest()
    if not stamp.exists() or stamp.read_text(encoding="ascii") != wanted:
        print(f"installing {requirements.relative_to(REPOSITORY)} for Python {version}", flush=True)
        shutil.rmtree(site, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
        # The list is complete and pinned, so pip need not check the Python version; it would check its own.
        foreign = ["--ignore-requires-python", "--python-version", version, "--only-binary", ":all:"]
        done = subprocess.run(
            [*command, *foreign, "--requirement", str(requirements)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"cannot install {requirements}:\n{done.stderr}")
        stamp.write_text(wanted, encoding="ascii")
    return python, site


def variables(site: Path) -> dict[str, str]:
    """Return the environment variables with which an interpreter finds these packages before others."""
    path = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    # bin: tools call others by name, such as ansible-doc.
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "PATH": f"{site / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }


def main() -> None:
    """Replace this process by the environment's Python with the given arguments."""
    name, *arguments = sys.argv[1:]
    python, site = ensure(name)
    os.execve(python, [str(python), *arguments], variables(site))


if __name__ == "__main__":
    main()
