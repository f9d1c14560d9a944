# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images for the container lab: Debian with systemd, built from this machine's mirror, without a registry.

An image is named after the hash of its recipe, so every checkout with the same recipe shares it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.lab import wiring

REPOSITORY = Path(__file__).resolve().parents[2]
REPOSITORY_NAME = "localhost/l4proxy-lab"
BUILD = REPOSITORY / ".build" / "lab"
CUSTOMIZE = Path(__file__).with_name("image") / "customize.sh"
KEYRINGS = ("/usr/share/keyrings/debian-archive-keyring.pgp", "/usr/share/keyrings/debian-archive-keyring.gpg")

#: Packages of every Debian host ...
BASE = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "python3",
    "python3-apt",
    "iproute2",
    "iputils-ping",
    "nftables",
    "procps",
    "kmod",
]
#: ... and test servers and instruments.
PACKAGES = [*BASE, "ca-certificates", "nginx", "curl", "conntrack", "tcpdump", "iputils-arping"]
OPTIONS = [
    "--variant=minbase",
    "--mode=root",
    "--skip=cleanup/apt",  # the lists of the local repository stay
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
]
#: systemd halts on SIGRTMIN+3 (systemd(1), SIGNALS).
CHANGES = ['CMD ["/sbin/init"]', "STOPSIGNAL SIGRTMIN+3", "ENV LANG=C.UTF-8"]


class ImageError(RuntimeError):
    """An image cannot be built; the message says why, and where its log is."""


def tag(release: str) -> str:
    """The name of the image: the release, and a hash of everything it is built from."""
    recipe = "\n".join([release, *PACKAGES, *OPTIONS, *CHANGES, CUSTOMIZE.read_text(encoding="utf-8")])
    return f"{REPOSITORY_NAME}:{release}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def remove_all() -> None:
    """Remove all images of the lab that no container uses."""
    for name in wiring.run(
        ["podman", "images", "--format", "{{.Repository}}:{{.Tag}}", REPOSITORY_NAME]
    ).stdout.split():
        wiring.run(["podman", "rmi", name], check=False)


def exists(name: str) -> bool:
    return wiring.run(["podman", "image", "exists", name], check=False).returncode == 0


def ensure(releases: Iterable[str], report: Callable[[str], None] = print) -> dict[str, str]:
    """Build missing images, two at a time; return the names of the images by release."""
    names = {release: tag(release) for release in releases}
    missing = [release for release, name in names.items() if not exists(name)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(lambda release: build(release, report), missing))
    return names


def build(release: str, report: Callable[[str], None] = print) -> None:
    """Build and import an image (about a minute), or wait for another process that does."""
    BUILD.mkdir(parents=True, exist_ok=True)
    log = BUILD / f"image-{release}.log"
    with _lock(release):
        if exists(tag(release)):
            return
        report(f"building the {release} image (once, about a minute; log: {log})")
        with tempfile.NamedTemporaryFile(dir=BUILD, prefix=f"{release}-", suffix=".tar") as archive:
            try:
                _make(release, archive.name, log)
            except subprocess.CalledProcessError as error:
                last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
                raise ImageError(
                    f"the {release} image was not built: {error.cmd[0]} failed; see {log}\n{last}"
                ) from error
        report(f"built {tag(release)}")


def _make(release: str, archive: str, log: Path) -> None:
    command = [
        "mmdebstrap",
        *OPTIONS,
        *[f"--aptopt={option}" for option in apt_options()],
        f"--include={','.join(PACKAGES)}",
        f"--customize-hook={CUSTOMIZE}",
        release,
        archive,
        *sources(release),
    ]
    changes = [argument for change in CHANGES for argument in ("--change", change)]
    with log.open("w", encoding="utf-8") as output:
        subprocess.run(command, check=True, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        subprocess.run(
            ["podman", "import", *changes, archive, tag(release)], check=True, stdout=output, stderr=subprocess.STDOUT
        )


def apt_options() -> list[str]:
    """This machine's apt settings for its mirror (proxies, certificates, retries), which the image does not keep."""
    wanted = ("Acquire::http::", "Acquire::https::", "Acquire::Check-", "Acquire::Retries", "Acquire::ForceIPv")
    lines = wiring.run(["apt-config", "dump", "Acquire"]).stdout.splitlines()
    return [line.rstrip(";") for line in lines if line.startswith(wanted) and not line.endswith(' "";')]


def sources(release: str) -> list[str]:
    """sources.list lines for a release, from this machine's Debian mirror; L4PROXY_LAB_MIRROR names another one."""
    mirror = os.environ.get("L4PROXY_LAB_MIRROR")
    archive, security = (mirror, None) if mirror else machine_mirrors()
    keyring = next((path for path in KEYRINGS if Path(path).exists()), None)
    options = f"[signed-by={keyring}] " if keyring else ""
    lines = [f"deb {options}{archive} {release} main"]
    if security:
        lines.append(f"deb {options}{security} {release}-security main")
    return lines


def machine_mirrors() -> tuple[str, str | None]:
    """URLs of the Debian archive and of its security archive in this machine's apt sources.

    apt itself reads its configuration for us, so one-line and deb822 files, whatever their names, are all understood.
    """
    listing = wiring.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    ).stdout
    main = [line.split()[:2] for line in listing.splitlines() if line.endswith(" main")]
    codename = _codename()
    archive = next((url for url, release in main if release in (codename, "stable")), None)
    security = next((url for url, release in main if release in (f"{codename}-security", "stable-security")), None)
    if not archive:
        raise ImageError(
            f"no Debian archive for {codename} in this machine's apt sources; "
            "set L4PROXY_LAB_MIRROR to the URL of a Debian mirror"
        )
    return archive, security


def _codename() -> str:
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return release.get("VERSION_CODENAME", "unknown").strip('"')


@contextlib.contextmanager
def _lock(release: str) -> Iterator[None]:
    with open(f"/run/l4proxy-lab-image-{release}", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
