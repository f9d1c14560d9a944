# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which engine holds the marks: chosen, kept, or changed on request. With two fake engines."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Mark, Observed
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import MissingPackage, RoutingError
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.marks import iptables, nft, selection

from ..fakes import no_command

OWNER = "return_path"
ONE = (Mark("a", 11, 255, ("02:00:00:00:00:11",), ("198.18.0.11",)),)
OTHER = (Mark("b", 12, 255, iif="eth0"),)


class Engines:
    """What each engine holds; an engine in ``broken`` always fails, one in ``refusing`` only when it is written."""

    def __init__(self, **held):
        self.held = {"nftables": Observed(), "iptables": Observed(), **held}
        self.broken: dict[str, RoutingError] = {}
        self.refusing: set[str] = set()
        self.log: list[str] = []

    def maker(self, name: str):
        return lambda _run: Engine(self, name)


class Engine:
    """A fake engine, as in MAKERS."""

    def __init__(self, host: Engines, name: str):
        self.host, self.name = host, name

    def read(self, _owner):
        if self.name in self.host.broken:
            raise self.host.broken[self.name]
        return self.host.held[self.name]

    def write(self, _owner, values):
        if self.name in self.host.refusing:
            raise RoutingError(f"{self.name} refuses")
        self.host.log.append(f"{self.name} {len(tuple(values))}")
        self.host.held[self.name] = Observed(tuple(values))


@pytest.fixture
def engines(monkeypatch):
    made = Engines()
    monkeypatch.setattr(selection, "MAKERS", {name: made.maker(name) for name in ("nftables", "iptables")})
    return made


def read(**arguments) -> Observed:
    return selection.read(None, OWNER, **arguments)


@pytest.mark.parametrize(("held", "missing", "wanted", "engine"), [
    ({}, set(), "auto", "nftables"),
    ({}, {"nftables"}, "auto", "iptables"),
    ({}, set(), "iptables", "iptables"),
    ({"iptables": ONE}, set(), "auto", "iptables"),
    ({"iptables": ONE}, set(), "nftables", "iptables"),
    ({"nftables": ONE}, set(), "iptables", "nftables"),
    ({"nftables": ONE, "iptables": OTHER}, set(), "auto", "nftables"),
    ({"nftables": ONE, "iptables": OTHER}, set(), "iptables", "iptables"),
])  # fmt: skip
def test_the_engine_that_holds_the_marks_keeps_them(engines, held, missing, wanted, engine):
    engines.held.update({name: Observed(values) for name, values in held.items()})
    engines.broken = {name: MissingPackage(name, "marks") for name in missing}
    found = read(requested=wanted)
    assert (found.engine, found.marks) == (engine, held.get(engine, ()))
    assert found.sound == (len(held) < 2)


def test_an_unsound_leftover_counts_as_held(engines):
    engines.held["iptables"] = Observed((), False)
    assert read() == Observed((), False, "iptables")


@pytest.mark.parametrize(("engine", "sentence", "package"), [
    (nft.Nft, "install the package nftables", "nftables"),
    (iptables.IpTables, "iptables-save: install the package iptables", "iptables"),
])  # fmt: skip
def test_without_its_command_an_engine_names_the_package(engine, sentence, package):
    with pytest.raises(MissingPackage, match=sentence) as caught:
        engine(no_command).read(OWNER)
    assert caught.value.package == package


@pytest.mark.parametrize(("broken", "wanted", "sentence"), [
    ({"nftables", "iptables"}, "auto", "nftables is broken"),
    ({"nftables"}, "nftables", "nftables is broken"),
    ({"iptables"}, "iptables", "iptables is broken"),
])  # fmt: skip
def test_a_missing_engine_fails_only_if_it_is_needed(engines, broken, wanted, sentence):
    engines.broken = {name: RoutingError(f"{name} is broken") for name in broken}
    with pytest.raises(RoutingError, match=sentence):
        read(requested=wanted)
    assert read(requested=wanted, needed=False).marks == ()


def test_the_new_engine_gets_the_marks_before_the_old_one_loses_them_and_without_marks_both_are_emptied(engines):
    engines.held["nftables"] = Observed(ONE)
    selection.write(None, OWNER, "iptables", ONE)
    assert engines.log == ["iptables 1", "nftables 0"]
    engines.held.update(nftables=Observed(ONE), iptables=Observed((), False))
    selection.write(None, OWNER, None, ())
    assert set(engines.log[2:]) == {"nftables 0", "iptables 0"}


@pytest.mark.parametrize(("other", "values", "before", "after"), [
    (Observed(), ONE, (), ((), ONE)),  # the new engine is emptied
    (Observed((), False), (), ONE, (ONE, ONE)),  # the engine gets its marks back
])  # fmt: skip
def test_the_engine_is_as_before_if_the_other_one_cannot_be_emptied(engines, other, values, before, after):
    engines.held.update(nftables=Observed(ONE), iptables=other)
    engines.refusing = {"nftables"}
    with pytest.raises(RoutingError, match="nftables refuses"):
        selection.write(None, OWNER, "iptables", values, before)
    assert (engines.held["iptables"].marks, engines.held["nftables"].marks) == after


@pytest.mark.parametrize(("engine", "values", "count"), [
    ("iptables", ONE, 1),
    ("iptables", OTHER, 0),
    ("nftables", ONE, 0),
    (None, ONE, 0),
])  # fmt: skip
def test_limits_of_an_engine_are_warnings(engine, values, count):
    assert len(selection.limits(values, engine)) == count
