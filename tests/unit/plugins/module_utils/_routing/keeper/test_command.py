# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``l4proxy keep --once`` and ``--dry-run``."""

from __future__ import annotations

import io

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper import command

from ..fakes import RETURN_PATH


def run(world, **options):
    return command.run(str(world.directory), host=world.host.engine, environ={}, **options)


def test_once_makes_one_pass_fails_while_something_is_missing_and_applies_an_empty_document(world, host):
    bring_back = world.lose_links()
    assert run(world, once=True) == 1
    bring_back()
    assert run(world, once=True) == 0
    run(world, once=True)
    world.store({key: RETURN_PATH[key] for key in ("schema", "owner", "protocol")})
    assert run(world, once=True) == 0
    assert host.kernel.held_rules == []


def test_a_dry_run_prints_the_difference_or_what_is_wrong_with_a_document_and_changes_nothing(world, host):
    out = io.StringIO()
    assert run(world, dry_run=True, out=out) == 2
    assert "return_path: add ip rule 1101: from all fwmark 0xb/0xff unreachable\n" in out.getvalue()
    assert host.kernel.calls == []
    run(world, once=True)
    assert run(world, dry_run=True, out=io.StringIO()) == 0
    rules = [{**rule, "retiring": True, "retire_at": 5} for rule in RETURN_PATH["rules"]]
    world.store({**RETURN_PATH, "rules": rules})
    out = io.StringIO()
    assert run(world, dry_run=True, out=out) == 0, "what the keeper is about to remove is no difference"
    assert "return_path: kept while connections need it: ip rule 1100: from all fwmark 0xb/0xff" in out.getvalue()
    (world.directory / "x.json").write_text("{")
    out = io.StringIO()
    assert run(world, dry_run=True, out=out) == 1
    assert f"{world.directory}/x.json: is not JSON" in out.getvalue()
