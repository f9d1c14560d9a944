# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every step of docs/docsite/rst/operations.rst under a steady load: nothing fails, and nothing breaks.

Sessions of a removed service, backend or proxy end at their deadline, as do all at a stop and a teardown: streams by
RST. The steps depend on their order.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.lab import earlier
from tests.support.waiting import eventually
from tests.walk.fleet import ECHO, HTTP, MORE, SESSIONS, Fleet, further_addresses, service

#: Seconds in which sessions of what was removed have ended: the deadline is 30.
ENDED = 50
LONG = 600  # seconds that a connection lasts across an upgrade


@dataclass(frozen=True)
class Step:
    """What an operator does; ``ends`` tells which sessions that ends, and ``count`` how many streams at least."""

    name: str
    take: Callable[[Fleet], object]
    ends: Callable[[dict], bool] = lambda session: False
    count: int = 0


def site(fleet: Fleet, **options: object) -> None:
    fleet.play("site", **options)


def site_without_a_change(fleet: Fleet) -> None:
    run = fleet.play("site")
    assert not run.changed, run.changed


def out_of_rotation(fleet: Fleet) -> None:
    """The commands of a proxy, with a wait that runs out of time, and the playbook that undoes them."""
    fleet.sh("a", "! l4proxy drain all b --wait --timeout 3; l4proxy maintenance all b; sleep 1; l4proxy ready all b")
    fleet.sh("a", "l4proxy drain all b")
    fleet.play("all_ready")


def add_backend(fleet: Fleet) -> None:
    fleet.hosts("backends")["d"] = {}
    for item in fleet.services.values():
        item["backends"].append({"host": "d", "port": HTTP if item["name"] == "web" else ECHO})
    site(fleet)
    for kind in ("stream", "flow"):
        fleet.open(kind, 12, "a")
    assert fleet.held(backend="d", kind="stream"), "no stream has reached d"
    assert fleet.held(backend="d", kind="flow"), "no flow has reached d"


def add_proxy(fleet: Fleet) -> None:
    fleet.hosts("proxies")["a2"] = {}
    site(fleet)
    fleet.web("a", "a2")
    for kind in ("stream", "flow"):
        fleet.open(kind, 6, "a2")


def change_options(fleet: Fleet) -> None:
    """Limits, weights, timeouts and balancing of what is there, and a new service."""
    web, stream, flow = (fleet.services[name] for name in ("web", "stream", "flow"))
    web.update(balance="least_connections", connect_timeout=2, limits={"connections_per_client": 5000})
    stream.update(idle_timeout=900, limits={"connections": 4000})
    flow.update(idle_timeout=12, limits={"connections_per_client": 2000})
    for item in (web, stream, flow):
        item["backends"][0]["weight"] = 3
    more = service("more", MORE, ECHO)
    fleet.variables["l4proxy_services"].append(more)
    site(fleet)
    fleet.open("stream", 4, "a", port=MORE)


def remove_listener(fleet: Fleet) -> None:
    fleet.variables["l4proxy_services"].pop()
    site(fleet)
    fleet.wait_ended(ENDED, port=MORE)


def strategy(name: str) -> Callable[[Fleet], None]:
    def change(fleet: Fleet) -> None:
        for backend, variables in fleet.hosts("backends").items():
            variables["return_path_strategy"] = name
            if name == "address":
                wanted = further_addresses(backend)
                variables["return_path_addresses"] = {proxy: wanted[proxy] for proxy in fleet.hosts("proxies")}
            else:
                variables.pop("return_path_addresses", None)
        site(fleet)

    return change


def variable(name: str, value: object) -> Callable[[Fleet], None]:
    def change(fleet: Fleet) -> None:
        fleet.variables[name] = value
        site(fleet)

    return change


LINK = "/usr/local/lib/l4proxy/l4proxy.pyz"


def upgrade(fleet: Fleet) -> None:
    site(fleet, collections=earlier.newer(fleet.directory / "newer"))
    assert fleet.status("a")["version"] == earlier.NEWER


def roll_back(fleet: Fleet) -> None:
    fleet.newer = fleet.sh("a", f"readlink {LINK}").strip()
    fleet.play("roll_back")
    assert fleet.status("a")["version"] != earlier.NEWER


def emergency(fleet: Fleet) -> None:
    """What the guide says about going back without Ansible; here it goes forward, which is the same."""
    fleet.proxies(f"ln -sfn {fleet.newer} {LINK}; systemctl reload l4proxy-forwarder")
    assert fleet.status("a")["version"] == earlier.NEWER


def ten_minutes(fleet: Fleet) -> None:
    """The first streams outlive ten minutes, and status shows the old workers that serve them."""
    eventually(lambda: max(item["at"] for item in fleet.first()) < time.time() - LONG, patience=LONG)
    old = fleet.status("a")["old_generations"]
    assert sum(item["sessions"] for item in old) >= SESSIONS
    assert all(item["memory"] > 0 and item["age"] > 0 for item in old)


def rolling_update(fleet: Fleet) -> None:
    """Clients end their sessions once a backend drains, or it would wait for them."""
    tasks = fleet.directory / "update.yml"
    tasks.write_text("- name: Update\n  ansible.builtin.command: 'true'\n  changed_when: true\n", encoding="utf-8")
    with ThreadPoolExecutor(1) as pool:
        play = pool.submit(fleet.play, "rolling_update", "-e", f"l4proxy_update_tasks={tasks}")
        while not play.done():
            draining = {
                backend["name"].split(":")[0]
                for proxy in fleet.hosts("proxies")
                for item in fleet.status(proxy).get("services", [])
                for backend in item["backends"]
                if backend["admin"] == "draining"
            }
            for backend in draining:
                fleet.close(backend=backend)
        play.result()


def keeper(fleet: Fleet) -> None:
    for name in (*fleet.hosts("proxies"), *fleet.hosts("backends")):
        fleet.sh(name, "systemctl restart l4proxy-keeper")


def remove_backend(fleet: Fleet) -> None:
    """The sessions of d do not end by themselves, so the playbook is told to go on."""
    fleet.play("remove_backend", "-e", "l4proxy_backend=d", "-e", "l4proxy_drain_timeout=3", works=False)
    fleet.play("remove_backend", "-e", "l4proxy_backend=d", "-e", "l4proxy_drain_timeout=3", "-e", "l4proxy_force=true")
    del fleet.hosts("backends")["d"]
    for item in fleet.services.values():
        item["backends"] = [backend for backend in item["backends"] if backend["host"] != "d"]
    site_without_a_change(fleet)
    fleet.wait_ended(ENDED, backend="d")


def remove_proxy(fleet: Fleet) -> None:
    fleet.web("a")
    fleet.play("remove_proxy", "-e", "l4proxy_proxy=a2", "-e", "l4proxy_drain_timeout=3", works=False)
    fleet.play("remove_proxy", "-e", "l4proxy_proxy=a2", "-e", "l4proxy_drain_timeout=3", "-e", "l4proxy_force=true")
    del fleet.hosts("proxies")["a2"]
    site_without_a_change(fleet)
    for address in (fleet.lab["a2"].ipv4, fleet.lab["a2"].ipv6):
        fleet.wait_ended(ENDED, to=address)


def stop(fleet: Fleet) -> None:
    fleet.web()
    fleet.sh("a", "systemctl stop l4proxy-forwarder")
    fleet.wait_ended(ENDED)


def drain_timeout(fleet: Fleet) -> None:
    """The control: with a deadline that the operator sets, a restart breaks streams, and the load notices."""
    fleet.sh("a", "systemctl start l4proxy-forwarder")
    eventually(lambda: len(fleet.held(kind="stream")) >= SESSIONS)
    variable("forwarder_drain_timeout", 3)(fleet)
    time.sleep(10)


def teardown(fleet: Fleet) -> None:
    eventually(lambda: len(fleet.held(kind="stream")) >= SESSIONS)
    fleet.play("teardown")
    fleet.wait_ended(ENDED)


STEPS = [
    Step("site without a change", site_without_a_change),
    Step("drain, maintenance, ready", out_of_rotation),
    Step("add backend d", add_backend),
    Step("change options, add a service", change_options),
    Step("remove a service", remove_listener, lambda session: session["port"] == MORE, 4),
    Step("add proxy a2", add_proxy),
    Step("strategy mark to address", strategy("address")),
    Step("strategy address to mark", strategy("mark")),
    Step("mark engine to iptables", variable("return_path_mark_engine", "iptables")),
    Step("mark engine to nftables", variable("return_path_mark_engine", "nftables")),
    Step("hash table to maglev", variable("l4proxy_hash_table", "maglev")),
    Step("forwarder_nofile", variable("forwarder_nofile", 16384)),
    Step("systemctl restart", lambda fleet: fleet.proxies("systemctl restart l4proxy-forwarder")),
    Step("upgrade", upgrade),
    Step("roll_back", roll_back),
    Step("another archive without Ansible", emergency),
    Step("site with the former version", site),
    Step("restart of the keepers", keeper),
    Step("streams of ten minutes", ten_minutes),
    Step("rolling_update", rolling_update),
    Step("verify", lambda fleet: fleet.play("verify")),
    Step("remove backend d", remove_backend, lambda session: session["backend"] == "d", 1),
    Step("remove proxy a2", remove_proxy, lambda session: session["to"] in ("198.18.0.12", "2001:db8::12"), 6),
    Step("stop", stop, lambda session: True, SESSIONS),
    Step("forwarder_drain_timeout, set", drain_timeout, lambda session: True, SESSIONS),
    Step("teardown", teardown, lambda session: True, SESSIONS),
]


@pytest.mark.parametrize("step", STEPS, ids=[step.name for step in STEPS])
def test_walk(fleet, report, step):
    row = fleet.walk(step.name, step.take, step.ends)
    report(row)
    if row.failure:
        raise row.failure
    ended = [item for item in row.ended if item["kind"] == "stream"]
    assert not row.failed
    assert not row.broken("stream")
    assert not row.broken("flow")
    assert not [item for item in ended if item["how"] != "reset"]
    assert len(ended) >= step.count
