# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Shared by the modules of the engine; tests of the modules test how errors are reported."""

from __future__ import annotations

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args
from ansible_collections.trueip.l4proxy.plugins.module_utils import _host_module
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.host import runner
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink import kernel


def test_the_distributions_python_is_used_when_ours_has_no_pyroute2(monkeypatch):
    monkeypatch.setattr(kernel, "PYROUTE2_ERROR", "ImportError")
    respawned = []
    monkeypatch.setattr(_host_module.respawn, "has_respawned", lambda: False)
    monkeypatch.setattr(_host_module.respawn, "probe_interpreters_for_module", lambda paths, name: paths[0])
    monkeypatch.setattr(_host_module.respawn, "respawn_module", respawned.append)
    _host_module.respawn_for_pyroute2()
    assert respawned == ["/usr/bin/python3"]


def test_the_command_runner_finds_commands_in_sbin_and_ends_a_command_that_hangs(monkeypatch):
    monkeypatch.setattr(runner, "TIMEOUT", 0.3)
    with patch_module_args({}):
        run = _host_module.command_runner(basic.AnsibleModule({}))
    assert run(["cat"], "text").stdout.strip() == "text"
    with pytest.raises(runner.MissingCommand):
        run(["nope-nope"])
    done = run(["sh", "-c", "sleep 20; true"])
    assert (done.code, done.stderr) == (124, "sh did not end within 0.3 s")
