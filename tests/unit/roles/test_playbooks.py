# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every play of the collection says for itself, because a user's configuration may say otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

PLAYBOOKS = sorted((Path(__file__).resolve().parents[3] / "playbooks").glob("*.yml"))
PLAYS = [
    (playbook.name, play)
    for playbook in PLAYBOOKS
    for play in yaml.safe_load(playbook.read_text(encoding="utf-8"))
    if "hosts" in play
]


@pytest.mark.parametrize(("playbook", "play"), PLAYS, ids=[f"{name}-{play['name']}" for name, play in PLAYS])
def test_every_play_goes_task_by_task_over_all_hosts(playbook, play):
    assert play.get("strategy") == "linear"


def test_there_are_plays():
    assert {name for name, _play in PLAYS} == {path.name for path in PLAYBOOKS}
