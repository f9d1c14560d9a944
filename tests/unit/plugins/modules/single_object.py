# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tests of policy_rule and policy_route share."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType

import pytest
import yaml
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args
from ansible_collections.trueip.l4proxy.plugins.doc_fragments.single_object import ModuleDocFragment
from ansible_collections.trueip.l4proxy.plugins.module_utils import _host_module
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink import kernel
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import engine
from ansible_collections.trueip.l4proxy.tests.unit.plugins.module_utils._routing import fakes


def check_documentation(module: ModuleType) -> None:
    """Types, defaults and choices are documented as they are."""
    documented = yaml.safe_load(module.DOCUMENTATION)["options"]
    documented.update(yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"])
    arguments = {**_host_module.SINGLE_OBJECT, **module.ARGUMENTS}
    assert set(documented) == set(arguments)
    for name, argument in arguments.items():
        for key in ("type", "default", "choices", "required"):
            assert documented[name].get(key) == argument.get(key), (name, key)


def caller(module: ModuleType, directory, monkeypatch, capsys) -> Callable[..., dict]:
    """Calls the module on a fake host, ``.host``; its result, with ``warned``."""
    fake = fakes.FakeHost(directory)
    warned: list[str] = []
    monkeypatch.setattr(engine, "Host", lambda runner: fake.engine)
    monkeypatch.setattr(kernel, "PYROUTE2_ERROR", None)
    monkeypatch.setattr(basic.AnsibleModule, "warn", lambda _module, text: warned.append(text))

    def call(check: bool = False, **options) -> dict:
        warned.clear()
        with patch_module_args({**options, "_ansible_check_mode": check}), pytest.raises(SystemExit):
            module.main()
        return {**json.loads(capsys.readouterr().out), "warned": list(warned)}

    call.host = fake
    return call


def check_without_pyroute2(call: Callable[..., dict], options: dict) -> None:
    call.host.no_pyroute2 = True
    result = call(**options)
    assert result["failed"]
    assert "install the package python3-pyroute2" in result["msg"]
    foretold = call(check=True, **options)
    assert foretold["changed"]
    assert "python3-pyroute2" in foretold["warned"][0]
