# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What can be said of kernel.py without a kernel; the rest is in tests/kernel."""

from __future__ import annotations

import errno

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing import kernel
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import MissingPackage
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.model import Rule


def test_without_pyroute2_the_package_is_named(monkeypatch):
    monkeypatch.setattr(kernel, "PYROUTE2_ERROR", "ImportError")
    with pytest.raises(MissingPackage, match="install the package python3-pyroute2"):
        kernel.Kernel()


def test_error_numbers_have_names():
    assert kernel.reason(OSError(errno.ENETUNREACH, "x")) == "Network is unreachable (ENETUNREACH)"
    assert kernel.reason(ValueError("as it is")) == "as it is"


def message(*pairs: tuple, **fields: int) -> dict:
    known = {"action": 1, "tos": 0, "flags": 0, "src_len": 0, "dst_len": 0, "table": 252}
    return {**known, **fields, "attrs": [("FRA_PROTOCOL", 202), ("FRA_PRIORITY", 9), ("FRA_TABLE", 7), *pairs]}


def test_a_rule_is_read():
    pairs = (("FRA_SRC", "198.18.0.21"), ("FRA_IP_PROTO", 6), ("FRA_SUPPRESS_PREFIXLEN", 0xFFFFFFFF))
    found = kernel._rule(message(*pairs, src_len=32), "ipv4")
    assert (found.value, found.protocol) == (Rule("ipv4", 9, table=7, src="198.18.0.21", ip_proto=6), 202)


BEYOND_US = [
    message(("FRA_OIFNAME", "eth0")),
    message(("FRA_UID_RANGE", "1:2")),
    message(("FRA_SUPPRESS_PREFIXLEN", 0)),
    message(("FRA_L3MDEV", 1)),
    message(flags=2),  # "not": it would read as its opposite
    message(tos=16),
    message(action=2),
]


@pytest.mark.parametrize("rule", BEYOND_US)
def test_a_rule_the_model_cannot_say_is_not_taken_for_another(rule):
    assert kernel._rule(rule, "ipv4").value is None
