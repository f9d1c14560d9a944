# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Running commands: output, missing commands, timeouts."""

from __future__ import annotations

import time

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host import runner


def test_output_and_status_of_a_command_are_returned_and_a_missing_one_is_an_error_with_its_name():
    done = runner.run(["sh", "-c", "cat; echo $LC_ALL >&2; exit 3"], "in")
    assert done == runner.Completed(3, "in", "C\n")
    with pytest.raises(runner.MissingCommand, match="nope-nope"):
        runner.run(["nope-nope"])


@pytest.mark.parametrize(("command", "name"), [(["sleep", "20"], "sleep"), (["sh", "-c", "sleep 20; true"], "sh")])
def test_a_hanging_command_is_killed_with_children_that_hold_its_pipes(monkeypatch, command, name):
    monkeypatch.setattr(runner, "TIMEOUT", 0.3)
    begun = time.monotonic()
    assert runner.run(command) == runner.Completed(124, "", f"{name} did not end within 0.3 s")
    assert time.monotonic() - begun < 10
