# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for every config: it goes around unchanged, and whatever is put into one is refused with its path."""

from __future__ import annotations

import copy
import json
import re

from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder import config
from hypothesis import given, settings
from hypothesis import strategies as st

PATH = re.compile(r'(?:document|[A-Za-z_]+(?:\[\d+\])?(?:\.(?:[^:"]|"(?:[^"\\]|\\.)*")*)?|"(?:[^"\\]|\\.)*"): .')

names = st.from_regex(r"[a-z][a-z0-9_.-]{0,20}", fullmatch=True)
seconds = st.floats(0.1, 600)
ports = st.integers(1, 65535)


@st.composite
def services(draw, number):
    """A service; listeners of different services have different addresses."""
    families = draw(st.sampled_from([["ipv4"], ["ipv6"], ["ipv4", "ipv6"]]))
    listen = {"ipv4": f"198.18.0.{number + 1}", "ipv6": f"2001:db8::{number + 1:x}"}
    backends = [
        {
            "name": name,
            "port": draw(ports),
            "weight": draw(st.integers(1, config.MAX_WEIGHT)),
            "backup": draw(st.booleans()),
            **{family: {"ipv4": f"198.18.1.{place}", "ipv6": f"2001:db8:1::{place:x}"}[family] for family in families},
        }
        for place, name in enumerate(draw(st.lists(names, min_size=1, max_size=3, unique=True)), 1)
    ]
    optional = {
        "balance": st.sampled_from(config.BALANCES),
        "retries": st.integers(0, config.MAX_RETRIES),
        "backlog": st.integers(1, config.MAX_BACKLOG),
        "idle_timeout": seconds,
        "source_port": st.sampled_from(["any", "keep"]),
        "on_all_down": st.sampled_from(config.ON_ALL_DOWN),
        "limits": st.fixed_dictionaries({}, optional={"connections": st.integers(0, 1000), "rate_per_client": seconds}),
        "allow": st.lists(st.ip_addresses().map(str), max_size=3),
        "health": st.fixed_dictionaries({}, optional={"enabled": st.booleans(), "rise": st.integers(1, 100)}),
    }
    return {
        "name": f"service{number}",
        "listen": [{"address": listen[family], "port": draw(ports)} for family in families],
        "backends": backends,
        **draw(st.fixed_dictionaries({}, optional=optional)),
    }


@st.composite
def documents(draw):
    """A config that is right."""
    return {
        "schema": config.SCHEMA,
        "proxy_id": draw(st.integers(1, 255)),
        "services": [draw(services(number)) for number in range(draw(st.integers(1, 3)))],
        **draw(st.fixed_dictionaries({}, optional={"drain_timeout": seconds, "workers": st.integers(0, 64)})),
    }


@settings(deadline=None)
@given(documents())
def test_a_config_goes_around_unchanged(document):
    loaded = config.load(document)
    dumped = config.dump(loaded)
    assert config.load(dumped) == loaded
    assert config.parse(json.dumps(dumped), "x") == loaded


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.ip_addresses().map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


def refused(document):
    """The errors of a document, none where it is accepted; any other exception is the test's failure."""
    try:
        config.load(document)
    except config.ConfigError as error:
        return error.errors
    return []


@settings(deadline=None)
@given(anything)
def test_anything_else_is_refused(document):
    assert refused(document)


def places(value, path=()):
    """Every place in a document, as a path of keys and indexes."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


@settings(deadline=None)
@given(documents(), anything, st.data())
def test_whatever_stands_at_one_place_is_accepted_or_refused_with_a_path(document, value, data):
    *path, last = data.draw(st.sampled_from(list(places(document))))
    spoilt = copy.deepcopy(document)
    inner = spoilt
    for key in path:
        inner = inner[key]
    inner[last] = value
    errors = refused(spoilt)
    assert [error for error in errors if not PATH.match(error)] == []
    assert len(errors) == len(set(errors)), "nothing is said twice"
