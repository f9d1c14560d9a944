# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A second run changes nothing, and check mode agrees."""

from __future__ import annotations


def test_check_mode_reports_no_change(play):
    run = play("site", "--check", "--diff")
    assert run.status == 0, run.output
    assert set(run.recap) == {"a", "b", "c", "d"}
    assert run.changed == {}, run.output


def test_check_mode_reports_a_missing_rule(lab, play):
    # Control: check mode does see differences. The keeper is stopped, because it would repair them before the run.
    lab["b"].run(["systemctl", "stop", "l4proxy-keeper"])
    lab["b"].run(["ip", "rule", "del", "pref", "1100"])
    run = play("site", "--check", "--diff", "--limit", "b")
    assert run.changed == {"b": 2}, run.output
    assert "+ip rule 1100: from all fwmark 0xb/0xff lookup 20111" in run.output
    assert "lookup 20111" not in lab["b"].run(["ip", "rule"]).stdout
    assert play("site", "--limit", "b").changed == {"b": 2}
    assert "lookup 20111" in lab["b"].run(["ip", "rule"]).stdout
