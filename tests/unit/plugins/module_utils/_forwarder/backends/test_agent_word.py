# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The line of an agent, and what counts of operator, agent and health checks."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends.agent_word import (
    MOST_PERCENT,
    parse,
    standing,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.config import Config
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_agent import HealthAgent
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_check import HealthCheck
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import agent_state, shared_memory
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.agent_state import AgentWord
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.shared_memory import (
    BROKEN,
    DOWN,
    DRAINING,
    MAINTENANCE,
    READY,
    UNKNOWN,
    UP,
)
from hypothesis import given
from hypothesis import strategies as st

TEST_LINES = [
    (b"up", AgentWord("up")),
    (b"UP 75%", AgentWord("up", percent=75)),
    (b"75%,maxconn:30,maint,down", AgentWord("down", "maint", 75)),  # a test of HAProxy's
    (b"\tready \t , up ,", AgentWord("up", "ready")),
    (b"weight 50%", AgentWord(percent=50)),
    (b"weight:50% drain", AgentWord("", "drain", 50)),
    (b"0%", AgentWord(percent=0)),
    (b"99999%", AgentWord(percent=MOST_PERCENT)),
    (b"up down", AgentWord("down")),
    (b"10% 20%", AgentWord(percent=20)),
    (b"down #  disk full ", AgentWord("down", reason="disk full")),
    (b"stopped#\xc3\xa4\x1b[31m,up", AgentWord("stopped", reason="???[31m,up")),
    (b"fail # " + 100 * b"x", AgentWord("fail", reason=64 * "x")),
    (b"drain # kernel update", AgentWord("", "drain")),  # a text belongs to a health word
    (b"", None),
    (b"# up", None),
    (b"upwards", None),
    (b"weight:50 maxconn:7 -5% 5.5% % 1e2%", None),
    (b"HTTP/1.1 400 Bad Request", None),
    (b"\xb2%", None),  # a superscript 2 is a digit for str.isdigit()
]


@pytest.mark.parametrize(("line", "word"), TEST_LINES)
def test_a_line_is_read_as_haproxy_reads_it(line, word):
    assert parse(line) == word


TEST_FOLLOWED = [
    ("down # why", "50%", AgentWord("down", percent=50, reason="why")),
    ("down # why", "up", AgentWord("up")),
    ("drain 50%", "up", AgentWord("up", "drain", 50)),
    ("drain 0%", "ready 100%", AgentWord("", "ready", 100)),
    ("up maint", "drain", AgentWord("up", "drain")),
    ("down # why", "down", AgentWord("down")),
]


@pytest.mark.parametrize(("first", "second", "word"), TEST_FOLLOWED)
def test_what_a_line_does_not_mention_stays(first, second, word):
    assert parse(first.encode()).followed_by(parse(second.encode())) == word


# The agent's line; the operator's state and weight; the health: what counts. The weight in the config is 4.
TEST_STANDINGS = [
    ("up", READY, 0, UP, (READY, UP, 4)),
    ("up", READY, 0, DOWN, (READY, DOWN, 4)),
    ("up", READY, 0, BROKEN, (READY, BROKEN, 4)),
    ("down", READY, 0, UP, (READY, DOWN, 4)),
    ("stopped", READY, 0, UNKNOWN, (READY, DOWN, 4)),
    ("fail drain", READY, 0, UP, (DRAINING, DOWN, 4)),
    ("drain", READY, 0, UP, (DRAINING, UP, 4)),
    ("maint", READY, 0, UP, (MAINTENANCE, UP, 4)),
    ("ready", READY, 0, UP, (READY, UP, 4)),
    ("50%", READY, 0, UP, (READY, UP, 2)),
    ("250%", READY, 0, UP, (READY, UP, 10)),
    ("1%", READY, 0, UP, (READY, UP, 0.04)),
    ("0%", READY, 0, UP, (DRAINING, UP, 4)),
    ("0% maint", READY, 0, UP, (MAINTENANCE, UP, 4)),
    ("ready 0%", READY, 0, UP, (DRAINING, UP, 4)),
    # The operator comes first.
    ("ready", DRAINING, 0, UP, (DRAINING, UP, 4)),
    ("drain", MAINTENANCE, 0, UP, (MAINTENANCE, UP, 4)),
    ("maint", DRAINING, 0, UP, (DRAINING, UP, 4)),
    ("50%", READY, 7, UP, (READY, UP, 7)),
    ("0%", READY, 7, UP, (READY, UP, 7)),
    ("drain 0%", READY, 7, UP, (DRAINING, UP, 7)),
    ("down", READY, 7, UP, (READY, DOWN, 7)),
]


@pytest.mark.parametrize(("line", "admin", "override", "health", "counts"), TEST_STANDINGS)
def test_the_operator_comes_before_the_agent_and_both_before_the_weight_of_the_config(
    line, admin, override, health, counts
):
    assert standing(parse(line.encode()), admin, health, 4, override) == counts
    assert standing(AgentWord(), admin, health, 4, override) == (admin, health, override or 4)


CONFIG = Config(
    proxy_id=1,
    services=(Service("web", (), (Backend("b", 80, "198.18.0.21"),), health=HealthCheck(agent=HealthAgent(9707))),),
)


@given(st.one_of(st.binary(max_size=200), st.text("updownraitfsel %#,0123456789", max_size=60).map(str.encode)))
def test_whatever_an_agent_says_can_be_published_and_read(line):
    word = parse(line)
    if word is not None:
        region = shared_memory.Region(shared_memory.describe(CONFIG, 1))
        agent_state.write(region, 0, word)
        assert agent_state.read(region, 0) == word
        assert standing(word, READY, UP, 65535, 0).weight > 0
        region.close()
