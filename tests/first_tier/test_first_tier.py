# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A proxy loses its power, its health, or is taken out on purpose: how soon new connections are served elsewhere.

`make first-tier` prints the figures; REPETITIONS=20 is how often power is cut.
"""

from __future__ import annotations

import os
import time

import pytest

from tests.first_tier.fleet import ADDRESSES, EVERY, KERNEL, READY, Watch
from tests.first_tier.namespaces import InNamespaces
from tests.support.waiting import FACTOR, eventually
from tests.walk.fleet import STREAM

REPETITIONS = int(os.environ.get("REPETITIONS", "20"))
#: Seconds within which new connections are served after a power cut.
WITHIN = {"vrrp": 2.0 * FACTOR, "bgp": 0.5 * FACTOR}
#: Seconds within which the address of an unhealthy proxy is elsewhere.
UNHEALTHY = 2.0 * FACTOR
#: Seconds of health after which a proxy is announced again, at least and at most.
DAMPING = (8.0, 25.0 * FACTOR)
#: An attempt at each of four addresses, every 50 ms.
ATTEMPTS = 4 / EVERY
IN_FLIGHT = 10  # connections of 50 ms
SETTLE = 3.0  # seconds after which attempts have ended, and streams that are lost are noticed

#: What makes a proxy unhealthy, and what mends it.
HARM = {
    "the forwarder is stopped": (InNamespaces.stop_forwarder, InNamespaces.start_forwarder),
    "all workers hang": (InNamespaces.hang, InNamespaces.go_on),
    "local delivery is broken": (InNamespaces.divert, InNamespaces.undivert),
}


def test_power_cut(fleet, report):
    """Again and again cut the power of whichever proxy has the virtual address; streams of the kernel outlive it all.

    Those of the forwarder are the negative control: all that live on the first proxy break.
    """
    took: dict[str, list[float]] = {name: [] for name in ADDRESSES}
    with fleet.load(ATTEMPTS, *ADDRESSES, streams=[(KERNEL, 200), (STREAM, 40)]):
        began = time.time()
        for _repetition in range(REPETITIONS):
            fleet.wait_whole()
            time.sleep(1)
            holder, cut = fleet.holder, time.time()
            fleet.cut(holder)
            time.sleep(WITHIN["vrrp"] + SETTLE)
            for name, seconds in took.items():
                seconds.append(fleet.outage(name, cut))
            fleet.plug(holder)
        fleet.wait_whole()
        time.sleep(10)  # a stream is lost when it has no answer for 8 s
        broken = fleet.broken(began)
        for name, seconds in took.items():
            mine = [item["port"] for item in broken if item["to"] in ADDRESSES[name]]
            lost = f"lost in all: {mine.count(KERNEL)} of 100 streams of the kernel, {mine.count(STREAM)} of 20 others"
            report("power cut", name, seconds, lost)
    assert not [item for item in broken if item["port"] == KERNEL], broken[:5]
    assert sum(item["to"] in ADDRESSES["vrrp"] for item in broken) == 20
    for name, seconds in took.items():
        assert 0 < max(seconds) <= WITHIN[name], (name, seconds)


@pytest.mark.parametrize(("harm", "mend"), HARM.values(), ids=HARM)
def test_an_unhealthy_proxy_loses_its_addresses(fleet, report, request, harm, mend):
    with fleet.load(ATTEMPTS, *ADDRESSES), Watch(fleet) as watch:
        time.sleep(1)
        holder, began = fleet.holder, time.time()
        harm(fleet, holder)
        try:
            time.sleep(UNHEALTHY + SETTLE)
            took = {name: fleet.outage(name, began) for name in ADDRESSES}
            assert holder not in (fleet.holder, *fleet.announcing())
        finally:
            mended = time.time()
            mend(fleet, holder)
        fleet.wait_whole()
        back = time.time() - mended
    for name, seconds in took.items():
        report(
            request.node.callspec.id, name, [seconds], f"announced again after {back:.0f} s" if name == "bgp" else ""
        )
    assert max(took.values()) <= UNHEALTHY
    assert DAMPING[0] <= back <= DAMPING[1]
    assert watch.leaves(holder) == (1, 1), watch.seen


def test_a_health_that_flaps_moves_the_addresses_once(fleet, report):
    harm, mend = HARM["the forwarder is stopped"]
    holder = fleet.holder
    with Watch(fleet) as watch:
        for _second in range(8):
            harm(fleet, holder)
            time.sleep(1)
            mend(fleet, holder)
            time.sleep(1)
        fleet.wait_whole()
    report("its forwarder stops and starts each second", "both", [], f"moves: {watch.leaves(holder)}")
    assert watch.leaves(holder) == (1, 1), watch.seen


def test_planned_withdrawal(fleet, report):
    """Only connections in flight at the moment of the move may fail: `withdraw` alone opens no second chance."""
    with fleet.load(200, *ADDRESSES):
        began, holder = time.time(), fleet.holder
        fleet.tell(holder, "withdraw")
        eventually(
            lambda: holder not in (fleet.holder, *fleet.announcing()),
            "elsewhere",
            fleet.show,
            patience=READY,
            interval=0.1,
        )
        left = time.time() - began
        time.sleep(SETTLE)
        fleet.tell(holder, "rejoin")
        fleet.wait_whole()
        time.sleep(SETTLE)
        failed = fleet.failed(began)
        for name in ADDRESSES:
            lost = sum(item["to"] in ADDRESSES[name] for item in failed)
            report(
                "withdrawn by an operator", name, [fleet.outage(name, began)], f"{lost} failed; gone after {left:.1f} s"
            )
    assert len(failed) <= IN_FLIGHT, failed
