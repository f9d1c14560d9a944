# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which changes of a file, of its directory and of other files are noticed, with the kernel's own inotify."""

from __future__ import annotations

import os
import select

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper.file_watch import FileWatch


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "backends.json"


@pytest.fixture
def watch(path):
    watching = FileWatch(str(path))
    yield watching
    watching.close()


def replace(path, text="{}"):
    path.parent.mkdir(exist_ok=True)
    (path.parent / "new").write_text(text)
    os.rename(path.parent / "new", path)


def is_readable(watch) -> bool:
    return bool(select.select([watch.descriptor], [], [], 0)[0])


def test_each_replacement_is_noticed_once_although_the_directory_is_made_later(path, watch):
    assert not is_readable(watch)
    assert not watch.changed()
    for _time in range(2):
        replace(path)
        assert is_readable(watch)
        assert watch.changed()
        assert not watch.changed()
    assert not is_readable(watch)


def test_a_directory_that_is_removed_and_made_again_is_watched_again(path, watch):
    replace(path)
    watch.changed()
    for _time in range(2):
        path.unlink()
        path.parent.rmdir()
        assert watch.changed()
        assert not watch.changed()
        replace(path)
        assert watch.changed()
        assert not watch.changed()
        replace(path)
        assert watch.changed()


def test_a_directory_that_is_moved_away_is_not_watched_any_more(path, watch):
    replace(path)
    watch.changed()
    os.rename(path.parent, path.parent.with_name("other"))
    assert watch.changed()
    replace(path.parent.with_name("other") / path.name)
    assert not watch.changed()
    replace(path)
    assert watch.changed()


def test_other_files_do_not_matter_and_a_link_is_not_followed(path, watch):
    path.parent.mkdir()
    watch.changed()
    (path.parent / "forwarder.json").write_text("{}")
    assert is_readable(watch)
    assert not watch.changed()
    path.parent.joinpath("forwarder.json").unlink()
    path.parent.rmdir()
    watch.changed()
    (path.parent.parent / "elsewhere").mkdir()
    path.parent.symlink_to("elsewhere")
    watch.changed()
    replace(path.parent.parent / "elsewhere" / path.name)
    assert not watch.changed()
