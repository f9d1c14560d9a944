# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The parts of kernel.py that need no kernel; tests/kernel tests the rest."""

from __future__ import annotations

import errno

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import MissingPackage
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink import kernel


def test_without_pyroute2_the_package_is_named(monkeypatch):
    monkeypatch.setattr(kernel, "PYROUTE2_ERROR", "ImportError")
    with pytest.raises(MissingPackage, match="install the package python3-pyroute2"):
        kernel.Kernel()


def test_error_numbers_are_described():
    assert kernel.reason(OSError(errno.ENETUNREACH, "x")) == "Network is unreachable (ENETUNREACH)"
    assert kernel.reason(ValueError("as it is")) == "as it is"
