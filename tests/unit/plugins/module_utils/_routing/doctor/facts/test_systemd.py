# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The output of ``systemctl show``, and the drop-ins of systemd-networkd."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts import systemd
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts.model import Unit
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host.runner import Completed

from ...fakes import no_command

SHOWN = """LoadState=loaded\nActiveState=active\nUnitFileState=enabled\nId=l4proxy-keeper.service\n
LoadState=not-found\nActiveState=inactive\nUnitFileState=\nId=systemd-networkd.service\n"""


def test_units_are_parsed_and_unknown_without_systemd(tmp_path):
    assert systemd.units(lambda _argv, _stdin: Completed(0, SHOWN, ""), str(tmp_path)) == {
        "l4proxy-keeper.service": Unit("loaded", "active", "enabled"),
        "systemd-networkd.service": Unit("not-found", "inactive", ""),
    }

    assert systemd.units(no_command, str(tmp_path)) is systemd.units(no_command, str(tmp_path / "none")) is None


@pytest.mark.parametrize(("name", "content", "stays"), [
    ("networkd.conf", "[Network]\nManageForeignRoutingPolicyRules=no\n", True),
    ("networkd.conf.d/l4proxy.conf", "[Network]\nManageForeignRoutingPolicyRules = false\n", True),
    ("networkd.conf.d/other.conf", "[Network]\nManageForeignRoutingPolicyRules=yes\n", False),
    ("networkd.conf.d/other.conf", "[Network]\n#ManageForeignRoutingPolicyRules=no\n", False),
    ("networkd.conf.d/other.txt", "[Network]\nManageForeignRoutingPolicyRules=no\n", False),
])  # fmt: skip
def test_only_drop_ins_that_keep_foreign_rules_are_found(tmp_path, name, content, stays):
    (tmp_path / "networkd.conf.d").mkdir()
    (tmp_path / name).write_text(content)
    assert bool(systemd.drop_ins(str(tmp_path))) == stays
