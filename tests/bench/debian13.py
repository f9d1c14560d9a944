# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""HAProxy 3.0 and nginx 1.26, the versions of Debian 13, on a machine with another release.

Their packages are unpacked once into .build/bench/trixie (a minute). Each program runs with the loader and the
libraries of its release, so that it needs no chroot and sees the paths of this machine.
"""

from __future__ import annotations

from pathlib import Path

from tests.gates import interpreters

RELEASE = "trixie"
ROOT = interpreters.REPOSITORY / ".build" / "bench" / RELEASE
PACKAGES = ("haproxy", "nginx", "libnginx-mod-stream")
NGINX_MODULES = ROOT / "usr" / "lib" / "nginx" / "modules"


def ensure() -> None:
    """Unpack the packages if they are not here yet; raise subprocess.CalledProcessError."""
    if not (ROOT / "usr" / "sbin" / PACKAGES[0]).exists():
        print(f"unpacking {', '.join(PACKAGES)} of Debian {RELEASE} (once, a minute)", flush=True)
        ROOT.parent.mkdir(parents=True, exist_ok=True)
        interpreters.make_root(RELEASE, ROOT, PACKAGES, variant="extract")


def command(name: str) -> list[str]:
    """Return the command line of a program: its loader, its libraries, and the program; ensure() has been called."""
    loader = next((ROOT / "usr" / "lib").glob("*/ld-linux*.so.*"), Path("missing"))
    return [str(loader), "--library-path", str(loader.parent), str(ROOT / "usr" / "sbin" / name)]
