# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink import kernel


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    """The warnings of a module, which has pyroute2."""
    warned = []
    monkeypatch.setattr(kernel, "PYROUTE2_ERROR", None)
    monkeypatch.setattr(basic.AnsibleModule, "warn", lambda _module, text: warned.append(text))
    return warned


@pytest.fixture
def call(capsys):
    """A function that calls a module and returns its JSON."""

    def call(module, check: bool = False, **options) -> dict:
        with patch_module_args({**options, "_ansible_check_mode": check}), pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out)

    return call
