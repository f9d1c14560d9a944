# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fingerprint by which the keeper sees that nothing has changed; foreign routes cost it almost nothing."""

from __future__ import annotations

import time

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents, store
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.keeper import fingerprint, reconcile_pass
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink import messages, route_messages

from tests.kernel.keeper.test_repairs import HARM, SETTING
from tests.support.routing import left_as_found, return_path

HOSTS = ["client", "router", "a", "b"]

MANY = 200_000


class Passes:
    """The keeper's passes on a host, and the fingerprint of the host between them."""

    def __init__(self, lab, directory):
        self.host = lab["b"]
        document = documents.load(return_path(lab["a"], sysctls=((SETTING, "0"),)))
        (directory / "return_path.json").write_text(store.content_of(document), encoding="utf-8")
        self._documents, self._engine = reconcile_pass.Documents(str(directory)), lab.engine.host(self.host)
        while self.run():
            pass

    def run(self) -> bool:
        """Run a pass; return whether it changed something."""
        with self.host.inside():
            self._result = reconcile_pass.reconcile_all(self._documents, self._engine)
        assert self._result.is_stable, self._result.problems
        return self._result.changed

    def fingerprint(self) -> bytes:
        with self.host.inside():
            return fingerprint.compute(self._result, self._engine)


@pytest.fixture
def passes(lab, tmp_path):
    with left_as_found(lab, "b"):
        yield Passes(lab, tmp_path)


def ip(host, words: str, check: bool = True) -> None:
    host.run(["ip", *words.split()], check=check, timeout=60)


LIKEWISE = {
    "mac": "neigh replace 198.18.0.11 lladdr 02:00:00:00:0a:0a dev eth0",
    "another owner's route in our table": "route add 10.0.0.0/8 via 198.18.0.1 table 20111",
    "a route of ours in another table": "route add 10.0.0.0/8 via 198.18.0.1 table 777 proto 202",
}
CHANGES = {
    **{name: harm for name, (harm, _kind) in HARM.items()},
    **{name: lambda _lab, b, words=words: ip(b, words) for name, words in LIKEWISE.items()},
    "setting": lambda _lab, b: b.sysctl(SETTING, "1"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_that_affect_a_document_change_the_fingerprint(lab, passes, change):
    before = passes.fingerprint()
    assert before
    assert passes.fingerprint() == before
    change(lab, passes.host)
    assert passes.fingerprint() != before
    for words in (
        "route del 10.0.0.0/8 table 777",
        "route del 10.0.0.0/8 table 20111",
        "neigh del 198.18.0.11 dev eth0",
    ):
        ip(passes.host, words, check=False)
    while passes.run():
        pass


OTHERS = ["route add 10.0.0.0/8 via 198.18.0.1", "link add veth9 type veth"]


def test_other_changes_do_not_change_the_fingerprint(lab, passes):
    """A lease that counts down, neighbours that are spoken to, routes and links of others."""
    ip(passes.host, "addr add 198.18.0.99/24 dev eth0 valid_lft 1000 preferred_lft 900")
    before = passes.fingerprint()
    passes.host.run(["ping", "-c1", "-W10", lab["a"].ipv4])
    for words in OTHERS:
        ip(passes.host, words)
    time.sleep(1.1)
    assert passes.fingerprint() == before
    for words in (*OTHERS, "addr add 198.18.0.99/24 dev eth0"):
        ip(passes.host, words.replace(" add ", " del "))


def test_a_full_internet_table_costs_almost_no_cpu(lab, passes):
    """In main, and in a table of somebody else; the control reads them all."""
    b = passes.host
    routes = [f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}/32" for number in range(MANY)]
    for table in ("main", "777"):
        lines = [f"route add {route} via 198.18.0.1 table {table}\n" for route in routes]
        b.run(["ip", "-batch", "-"], input="".join(lines), timeout=60)
    try:
        assert not passes.run()
        running, hashing = _cpu(passes.run), _cpu(passes.fingerprint)
        with b.inside(), messages.Netlink() as lax:
            reading = _cpu(lambda: lax.dump(route_messages.RTM_GETROUTE, route_messages.listing("ipv4", protocol=202)))
    finally:
        for table in ("main", "777"):
            ip(b, f"route flush table {table} root 10.0.0.0/8")
    assert running < reading / 2, f"{running:.3f} s against {reading:.3f} s only to receive them"
    assert hashing < reading / 4, f"{hashing:.3f} s against {reading:.3f} s only to receive them"


def _cpu(action, times: int = 3) -> float:
    """The CPU seconds of ``action``: the minimum of several runs."""
    taken = []
    for _time in range(times):
        began = time.process_time()
        action()
        taken.append(time.process_time() - began)
    return min(taken)
