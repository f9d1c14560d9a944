# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._errors import UnreadableVariable
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._variables import Inventory, plain


class Lazy(list):
    """A list as Ansible has it: a template in it fails when it is used."""

    def __iter__(self):
        yield "good"
        raise ValueError("'x' is undefined")


class Variables(dict):
    """The template of the whole variable fails."""

    def __getitem__(self, key):
        if key == "whole":
            raise ValueError("'y' is undefined")
        return super().__getitem__(key)


class Undefined:
    """The value of a template with an undefined name."""

    def __str__(self):
        raise ValueError("'z' is undefined")


HOSTS = Inventory(
    {"b": Variables(whole=1, scalar=Undefined(), inside={"deep": Lazy()}, good=[1, {"a": (2,)}], ansible_facts=Lazy())}
)


@pytest.mark.parametrize(
    ("key", "reason"), [("whole", "'y' is undefined"), ("inside", "'x' is undefined"), ("scalar", "'z' is undefined")]
)
def test_a_template_that_fails_is_reported_with_variable_and_host(key, reason):
    with pytest.raises(UnreadableVariable) as caught:
        HOSTS["b"].get(key)
    assert caught.value.errors == [f"{key} of b cannot be evaluated: {reason}"]


def test_values_are_evaluated_and_facts_are_not():
    assert HOSTS["b"].get("good") == [1, {"a": [2]}]
    assert HOSTS["b"].get("missing", 5) == 5
    assert isinstance(HOSTS["b"]["ansible_facts"], Lazy)


def test_it_behaves_like_a_mapping():
    host, names = HOSTS["b"], {"whole", "scalar", "inside", "good", "ansible_facts"}
    assert (list(HOSTS), len(HOSTS), "whole" in host, set(host), len(host)) == (["b"], 1, True, names, 5)


def test_plain_returns_a_copy():
    value = {"a": [1]}
    assert plain(value) == value
    assert plain(value)["a"] is not value["a"]
