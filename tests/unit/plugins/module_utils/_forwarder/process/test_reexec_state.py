# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is left for the next program reaches that program only, and its descriptors with it."""

from __future__ import annotations

import os

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import reexec_state


def test_leave_and_take():
    read, write = os.pipe()
    variable = reexec_state.leave({"listeners": {"tcp:0.0.0.0:80#0": read}, "text": "x" * 300000}, [read])
    assert os.get_inheritable(read)
    assert not os.get_inheritable(write)
    environment = {**variable, "PATH": "/bin"}
    taken = reexec_state.take(environment)
    assert taken["listeners"] == {"tcp:0.0.0.0:80#0": read}
    assert len(taken["text"]) == 300000
    assert environment == {"PATH": "/bin"}, "children must not see it"
    assert reexec_state.take(environment) is None
    os.close(read)
    os.close(write)


def test_a_variable_meant_for_another_process_is_ignored():
    environment = {reexec_state.VARIABLE: f"{os.getpid() + 1}:0"}
    assert reexec_state.take(environment) is None
    assert environment == {}


def test_recall():
    read, write = os.pipe()
    variable = reexec_state.leave({}, [read])
    reexec_state.recall(variable, [read])
    assert not os.get_inheritable(read)
    os.close(read)
    os.close(write)
