# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state for the next program reaches only that program, and its descriptors stay open."""

from __future__ import annotations

import os

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import reexec_state


@pytest.fixture
def pipe():
    pipe = os.pipe()
    yield pipe
    for number in pipe:
        os.close(number)


def test_the_next_program_takes_the_state_and_the_descriptors_once(pipe):
    read, write = pipe
    variable = reexec_state.leave({"listeners": {"tcp:0.0.0.0:80#0": read}, "text": "x" * 300000}, [read])
    assert os.get_inheritable(read)
    assert not os.get_inheritable(write)
    environment = {**variable, "PATH": "/bin"}
    state = reexec_state.take(environment)
    assert state["listeners"] == {"tcp:0.0.0.0:80#0": read}
    assert len(state["text"]) == 300000
    assert environment == {"PATH": "/bin"}, "children must not see the variable"
    assert reexec_state.take(environment) is None


def test_a_variable_for_another_process_is_ignored_and_after_a_failed_exec_descriptors_are_close_on_exec(pipe):
    environment = {reexec_state.VARIABLE: f"{os.getpid() + 1}:0"}
    assert reexec_state.take(environment) is None
    assert environment == {}
    reexec_state.recall(reexec_state.leave({}, [pipe[0]]), [pipe[0]])
    assert not os.get_inheritable(pipe[0])
