# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import yaml
from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _archive

ROOT = Path(__file__).resolve().parents[4]
VERSION = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))["version"]


def build(collection: Path) -> bytes:
    return _archive.archive(_archive.sources(collection))


def test_the_same_sources_give_the_same_bytes_wherever_they_lie(tmp_path):
    utils = tmp_path / "plugins" / "module_utils"
    for name, content in reversed(_archive.sources(ROOT)):
        path = utils / Path(name).relative_to(_archive.PACKAGE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o600)
        os.utime(path, (1_000_000_000, 1_000_000_000))
    shutil.copy(ROOT / "galaxy.yml", tmp_path)
    assert build(tmp_path) == build(ROOT)


def test_another_source_gives_other_bytes_and_another_content_another_name(tmp_path):
    shutil.copytree(ROOT / "plugins" / "module_utils", tmp_path / "plugins" / "module_utils")
    shutil.copy(ROOT / "galaxy.yml", tmp_path)
    (tmp_path / "plugins" / "module_utils" / "_cli.py").write_text("x = 1\n", encoding="utf-8")
    one, other = build(tmp_path), build(ROOT)
    assert one != other
    assert _archive.archive_name("1.0.0", one) != _archive.archive_name("1.0.0", other)


def test_it_carries_no_file_that_needs_ansible_runs_and_says_its_version(tmp_path):
    path = tmp_path / "l4proxy.pyz"
    path.write_bytes(build(ROOT))
    with zipfile.ZipFile(path) as packed:
        for name in packed.namelist():
            assert b"import ansible" not in packed.read(name), name
            assert b"from ansible" not in packed.read(name), name
    done = subprocess.run([sys.executable, "-I", str(path), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"l4proxy {VERSION}\n"


def test_healthy_runs_without_the_rest_of_the_archive_which_has_what_it_does_not_know(tmp_path):
    whole, part = tmp_path / "l4proxy", tmp_path / "part"
    whole.write_bytes(build(ROOT))
    part.write_bytes(whole.read_bytes()[: whole.read_bytes().index(b"PK\3\4")])
    asked = ["healthy", "--socket", f"{tmp_path}/none"]
    sentence = f"this proxy should not get clients: no forwarder listens on {tmp_path}/none\n"
    for path, arguments, status, beginning in (
        (whole, asked, 1, sentence),
        (part, asked, 1, sentence),
        (whole, ["healthy", "--help"], 0, "usage: l4proxy healthy"),
        (part, ["healthy", "--help"], 1, ""),
        (whole, ["healthy", "--need-backend", "all"], 2, ""),
        (whole, ["--version"], 0, f"l4proxy {VERSION}"),
    ):
        path.chmod(0o755)
        done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.startswith(beginning)) == (status, True), done


def test_an_installed_collection_says_its_version_in_the_manifest(tmp_path):
    (tmp_path / "MANIFEST.json").write_text('{"collection_info": {"version": "7.8.9"}}', encoding="utf-8")
    assert _archive.collection_version(tmp_path) == "7.8.9"
    assert dict(_archive.sources(tmp_path)) == {"l4proxy/_version.py": b"VERSION = '7.8.9'\n"}
