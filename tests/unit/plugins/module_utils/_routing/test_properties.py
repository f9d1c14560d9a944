# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Properties of any two documents, with random ones on a fake host; tests/kernel tests them on a real one."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.model import Address, Route, Rule
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.errors import RoutingError
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import engine
from hypothesis import given, settings
from hypothesis import strategies as st

from .fakes import FakeHost
from .random_documents import any_document

FOREIGN = (
    (Rule("ipv4", 1100, table=20999, iif="eth0", dst="10.0.0.0/8"), 150),
    (Route("ipv4", 20999, "10.0.0.0/8", dev="eth0"), 4),
    (Address("ipv4", "198.18.0.130", "eth0"), 0),
)


class Fresh:
    """A host with a few foreign objects."""

    def __init__(self):
        self._directory = tempfile.TemporaryDirectory()
        self.host = FakeHost(Path(self._directory.name))
        rule, route, address = FOREIGN
        self.host.kernel.held_rules.append(rule)
        self.host.kernel.held_routes.append(route)
        self.host.kernel.held_addresses.append(address)
        self.start = self.host.snapshot()

    def __enter__(self) -> Fresh:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._directory.cleanup()

    def apply(self, data: dict, **options) -> engine.Outcome:
        return engine.reconcile(documents.load(data), self.host.engine, engine.Options(allow_empty=True, **options))


@settings(max_examples=60)
@given(any_document(), any_document())
def test_the_result_does_not_depend_on_the_earlier_document(first, second):
    with Fresh() as used, Fresh() as clean:
        used.apply(first)
        used.apply(second)
        clean.apply(second)
        assert used.host.snapshot() == clean.host.snapshot()
        engine.remove("return_path", used.host.engine)
        assert used.host.snapshot() == used.start, "foreign objects were never touched"


@settings(max_examples=60)
@given(any_document(), any_document(), st.booleans())
def test_check_mode_predicts_the_result_and_a_second_run_changes_nothing(first, second, purge):
    with Fresh() as fresh:
        fresh.apply(first)
        before = fresh.host.snapshot()
        foretold = fresh.apply(second, check=True, purge=purge)
        assert fresh.host.snapshot() == before
        assert foretold == fresh.apply(second, purge=purge)
        after = fresh.host.snapshot()
        again = fresh.apply(second, purge=purge)
        assert (again.changes, again.diff, fresh.host.snapshot()) == ((), (), after)


@settings(max_examples=40)
@given(any_document(), any_document())
def test_a_drain_ends_in_the_same_state_as_no_drain(first, second):
    with Fresh() as drained, Fresh() as clean:
        drained.host.connections = {11: 3, 12: 1}
        drained.apply(first)
        drained.apply(second, drain=60, now=1000.0)
        assert drained.apply(second, drain=60, now=1030.0).changes == ()
        drained.apply(second, now=1060.0)
        clean.apply(second)
        assert drained.host.snapshot() == clean.host.snapshot()


@settings(max_examples=40)
@given(any_document(), any_document(), st.integers(1, 30))
def test_a_failure_restores_the_earlier_state(first, second, number):
    """Whichever change fails."""
    with Fresh() as fresh:
        fresh.apply(first)
        before, calls = fresh.host.snapshot(), len(fresh.host.kernel.calls)
        fresh.host.kernel.fail_at = calls + number
        try:
            fresh.apply(second)
        except RoutingError:
            assert fresh.host.snapshot() == before
        else:
            assert len(fresh.host.kernel.calls) < calls + number
