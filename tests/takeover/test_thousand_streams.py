# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""1,000 long streams through a virtual address that moves from one proxy to another: how many are lost, and how late.

A third are downloads, a third uploads, a third idle; half are of each family. Services of both datapaths run side by
side. `make takeover` prints the figures.
"""

from __future__ import annotations

import json
import math
import os
import time

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared import bucket_table

from tests.lab.netns import NamespaceLab
from tests.support.takeover import HOST, VIRTUAL, Fleet, kernel_services, serve, streaming
from tests.support.waiting import FACTOR

HOSTS = ["client", "router", "a", "a2", "b", "c", "d"]
KERNEL, FORWARDER = 80, 81
BACKENDS = [f"{name}:{port}" for port in (8080, 8081, 8082) for name in "bcd"]
ADDED, REMOVED, FLAPPED = "d:8083", "b:8082", "c:8081"
IDLE = 3.0  # seconds between two words of a server to an idle stream
PATIENCE = 15 * FACTOR
# Part of the streams in which the server speaks first and yet the client was faster.
RACES = 0.05


def per_family(count: int) -> dict[str, int]:
    """So many streams in both families together, a third of each kind."""
    half = count // 2
    return {"down": (half + 2) // 3, "up": (half + 1) // 3, "idle": half // 3}


@pytest.fixture(scope="module")
def lab():
    """Both proxies have the virtual address on lo, so that a forwarder accepts its clients; the router chooses one."""
    with NamespaceLab(f"to{os.getpid()}", HOSTS) as lab:
        serve(lab, "bcd", [8080, 8081, 8082, 8083, 8090], IDLE)
        for name in ("a", "a2"):
            for family, (flag, length) in HOST.items():
                lab[name].run(["ip", flag, "address", "add", f"{VIRTUAL[family]}/{length}", "dev", "lo"])
        yield lab


@pytest.fixture
def fleet(lab, tmp_path):
    fleet = Fleet(lab, tmp_path, services(BACKENDS))
    fleet.start()
    fleet.start_forwarders()
    yield fleet
    fleet.close()
    fleet.plug("a")
    fleet.remove()


def services(backends: list, disabled: str = "") -> list[dict]:
    rows = [{"host": name, "port": int(port)} for name, port in (one.split(":") for one in backends)]
    for row in rows:
        row.update({"enabled": False} if f"{row['host']}:{row['port']}" == disabled else {})
    kernel, _udp = kernel_services(KERNEL, rows)
    relayed, _udp = kernel_services(FORWARDER, [f"{name}:8090" for name in "bcd"], datapath="forwarder")
    return [kernel, relayed]


def lost(streams: list) -> dict[str, list[int]]:
    """By kind: the numbers of streams that are lost, and of all."""
    found: dict[str, list[int]] = {}
    for running in streams:
        for kind, values in running.report().items():
            numbers = found.setdefault(kind, [0, 0])
            numbers[0] += values["of"] - values["moved"]
            numbers[1] += values["of"]
    return found


def settled(streams: list) -> dict[str, list[int]]:
    """The same when all go on, or when those that do not have had time for it."""
    deadline = time.monotonic() + PATIENCE
    while any(numbers[0] for numbers in lost(streams).values()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return lost(streams)


def say(title: str, streams: list, numbers: dict[str, list[int]]) -> None:
    gone, count = (sum(values[index] for values in numbers.values()) for index in (0, 1))
    silence: dict[str, float] = {}
    reasons: set[str] = set()
    for running in streams:
        for kind, values in running.report().items():
            reasons |= {f"{count} {kind} {reason}" for reason, count in values["errors"].items()}
            reasons |= {f"{count} {kind} of {server}" for server, count in values["lost"].items()}
            silence[kind] = max(silence.get(kind, 0.0), values["silence"])
    kinds = ", ".join(f"{kind} {numbers[kind][0]} of {numbers[kind][1]}" for kind in numbers)
    longest = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in silence.items())
    print(f"\n{title}: {gone} of {count} lost ({kinds}); longest silence: {longest}; {sorted(reasons)}", flush=True)


# What happens to proxy a, and whether the streams of the forwarder outlive it.
EVENTS = {
    "its link is cut, and a second later the address moves": (lambda fleet: fleet.take_over("a", "a2"), False),
    "both live, and the address moves": (lambda fleet: fleet.move("a2"), False),
    "its link is down for 2 s": (lambda fleet: fleet.flap("a", 2.0), True),
}


@pytest.mark.parametrize(("event", "forwarder_too"), EVENTS.values(), ids=EVENTS)
def test_no_stream_of_the_kernel_is_lost(fleet, request, event, forwarder_too):
    title = request.node.callspec.id
    with streaming(fleet.lab, {KERNEL: per_family(1000), FORWARDER: per_family(300)}) as streams:
        event(fleet)
        fleet.mark(streams)
        kernel, relayed = ([one for one in streams if one.port == port] for port in (KERNEL, FORWARDER))
        of_kernel, of_forwarder = settled(kernel), settled(relayed)
        say(f"kernel: {title}", kernel, of_kernel)
        say(f"forwarder: {title}", relayed, of_forwarder)
    assert sum(numbers[0] for numbers in of_kernel.values()) == 0
    assert all(numbers[0] == (0 if forwarder_too else numbers[1]) for numbers in of_forwarder.values())


def change(fleet, backends: list[str], disabled: str = "") -> None:
    fleet.services = services(backends, disabled)
    fleet.apply(drain=math.inf, now=time.time())


def owners(fleet) -> list[str]:
    """The backend of each bucket."""
    document = json.loads((fleet.stored("a2") / "kernel_datapath.json").read_text(encoding="utf-8"))
    first = next(service for service in document["services"] if not service.get("retiring"))
    names = [backend["name"] for backend in first["backends"]]
    return [names[index] for index in bucket_table.fill(names, [1] * len(names))]


def test_streams_of_earlier_tables_are_lost_only_if_their_bucket_has_another_backend_and_the_client_speaks_first(fleet):
    """A backend was added, one removed, and one was down when some of the streams began."""
    before = owners(fleet)
    with streaming(fleet.lab, {KERNEL: per_family(400)}) as old:
        change(fleet, [*BACKENDS, ADDED])
        now = [name for name in [*BACKENDS, ADDED] if name != REMOVED]
        change(fleet, now)
        change(fleet, now, disabled=FLAPPED)
        with streaming(fleet.lab, {KERNEL: per_family(300)}) as flapped:
            change(fleet, now)
            with streaming(fleet.lab, {KERNEL: per_family(300)}) as new:
                cohorts = {"before": old, "while one was down": flapped, "after": new}
                fleet.take_over("a", "a2")
                fleet.mark([*old, *flapped, *new])
                after = owners(fleet)
                figures = {name: settled(cohort) for name, cohort in cohorts.items()}
                for name, cohort in cohorts.items():
                    say(f"kernel: changed tables, streams that began {name}", cohort, figures[name])
    elsewhere = sum(one != other for one, other in zip(before, after)) / len(before)
    gone = sum(one == REMOVED for one in before) / len(before)
    bounds = {"before": elsewhere, "while one was down": 1 / len(now), "after": 0.0}
    print(f"buckets that have another backend: {elsewhere:.1%}, of these {gone:.1%} of the removed one", flush=True)
    for name, bound in bounds.items():
        dead, count = figures[name]["up"]
        assert dead <= bound * count + 4 * (bound * count) ** 0.5, (name, figures[name], bound)
        for kind in ("down", "idle"):
            dead, count = figures[name][kind]
            assert dead <= RACES * count, (name, figures[name])
