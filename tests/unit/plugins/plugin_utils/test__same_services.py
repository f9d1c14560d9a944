# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json

import pytest
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._same_services import faults
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._variables import Inventory

from tests.unit.tables import rows

ONE = [{"name": "web", "listen": ["0.0.0.0:80"], "backends": ["b:8080", "c:8080"]}]
OTHER = [{**ONE[0], "backends": ["b:8080"]}]
# What a proxy alone uses: where it listens, by which rules.
OWN = [{**ONE[0], "listen": [{"address": "198.18.0.12", "port": 80}], "connect_timeout": 1}]
FAMILY = [{**ONE[0], "listen": ["[::]:80"]}]
ORDERED = [dict(reversed(ONE[0].items()))]
# A service of the kernel datapath, and one that differs in nothing but its listen address.
FAST = [{**ONE[0], "datapath": "kernel"}]
MOVED = [{**FAST[0], "listen": [{"address": "198.18.0.12", "port": 80}]}]
WEIGHT = [{**FAST[0], "backends": [{"host": "b", "port": 8080, "weight": 2}, "c:8080"]}]
WEIGHTS = [{**FAST[0], "backends": [{"host": "b", "port": 8080, "weight": 3}, "c:8080"]}]
PORT = [{**ONE[0], "backends": [{"host": "b", "port": 1}]}]
PORT2 = [{**ONE[0], "backends": [{"host": "b", "port": 2}]}]
MORE = [*ONE, {"name": "mail", "listen": ["0.0.0.0:25"], "backends": ["c:2525"]}]


class Failing(dict):
    """Variables of which the list of services cannot be evaluated."""

    def __init__(self, reason, **more):
        super().__init__(l4proxy_services=None, **more)
        self._reason = reason

    def __getitem__(self, key):
        if key == "l4proxy_services":
            raise ValueError(self._reason)
        return super().__getitem__(key)


def inventory(told, outside=None):
    """Hosts of a run, each with the services it has evaluated, and other hosts with their variables."""
    outside = outside or {}
    names = [*told, *outside]
    view = {"proxies": names[:1], "backends": names[1:]}
    found = dict(outside)
    for name, said in told.items():
        own = {} if said is None else {"l4proxy_services": said}
        variables = said if isinstance(said, Failing) else own
        text = "" if isinstance(said, Failing) else json.dumps(said)
        variables["__l4proxy_fleet"] = {**view, "host": name, "services": text}
        found[name] = variables
    return Inventory(found)


def differs(what):
    return [
        f"l4proxy_services differs between {what}; both ends are derived from one list, so put all services into "
        "group_vars/all, each with the `proxies` that serve it, or give each site an inventory of its own"
    ]


SAME_CHOICE = (
    "; for a connection that moves to another proxy, that proxy must choose the same backend, so a service of the "
    "kernel datapath may only differ in its listen addresses; set the value once, or use datapath: forwarder"
)


ONE_LESS = differs('a and c: l4proxy_services[0].backends[1] is "c:8080" on a, and missing on c')
DEFINE = "; every host needs the whole list, so define the variables that it uses for all hosts (group_vars/all)"
UNDEFINED = "'web_port' is undefined"
# What hosts of the run have said, what others have in the inventory, and the faults.
ROWS = [
    ("one list", {"a": ONE, "b": ORDERED}, {"c": {"l4proxy_services": ONE}}, []),
    ("what one proxy alone uses", {"a": ONE, "a2": OWN}, {}, []),
    ("a family", {"a": ONE, "b": FAMILY}, {},
     differs('a and b: l4proxy_services[0].listen[0] is "0.0.0.0:80" on a, and "[::]:80" on b')),
    ("a backend more", {"a": ONE, "b": ONE, "c": OTHER}, {}, ONE_LESS),
    ("a service more, on several hosts", {"a": ONE, **dict.fromkeys("bcdef", MORE)}, {},
     differs('a and b, c, d and 2 more: l4proxy_services[1] is missing on a, and {"name": "mail", "listen": '
             '["0.0.0.0:25"], "backends": ["c:… on b')),
    ("a value", {"a": PORT, "b": PORT2}, {},
     differs("a and b: l4proxy_services[0].backends[0].port is 1 on a, and 2 on b")),
    ("the listen address of a kernel service", {"a": FAST, "a2": MOVED}, {}, []),
    ("a weight of a kernel service", {"a": WEIGHT, "a2": WEIGHTS}, {},
     ["l4proxy_services differs between a and a2: l4proxy_services[0].backends[0].weight is 2 on a, and 3 on a2"
      + SAME_CHOICE]),
    ("an option of a kernel service", {"a": FAST, "a2": [{**FAST[0], "balance": "source_hash"}]}, {},
     ['l4proxy_services differs between a and a2: l4proxy_services[0].balance is missing on a, and "source_hash" on a2'
      + SAME_CHOICE]),
    ("a datapath", {"a": ONE, "a2": FAST}, {},
     differs('a and a2: l4proxy_services[0].datapath is missing on a, and "kernel" on a2')),
    ("a host outside of the run", {"a": ONE}, {"c": {"l4proxy_services": OTHER}}, ONE_LESS),
    ("a host outside of the run that has none", {"a": ONE}, {"c": {}},
     ["l4proxy_services is defined on a, but not on c; it belongs in group_vars/all, because both ends are "
      "derived from it"]),
    ("a host outside of the run whose list cannot be read from here", {"a": ONE}, {"c": Failing("x")}, []),
    ("nowhere, which the derivation says better", {"a": None, "b": None}, {}, []),
    ("a variable that only some have", {"a": ONE, "b": Failing(UNDEFINED), "c": Failing(UNDEFINED)}, {},
     [f"l4proxy_services cannot be evaluated on b and c: {UNDEFINED}{DEFINE}"]),
    ("a reason that only the play can know", {"a": ONE, "b": Failing("'hostvars' is undefined")}, {},
     [f"l4proxy_services cannot be evaluated on b: a template in it cannot be evaluated{DEFINE}"]),
]  # fmt: skip


@pytest.mark.parametrize(("told", "outside", "expected"), **rows(ROWS))
def test_hosts_with_different_services_are_refused(told, outside, expected):
    assert faults(list(told), inventory(told, outside)) == expected


def test_services_set_by_the_play_are_not_compared_with_the_inventory():
    hosts = inventory({"a": ONE}, {"c": {"l4proxy_services": OTHER}})
    own = dict(hosts["a"])
    own["l4proxy_services"] = MORE
    assert faults(["a"], Inventory({"a": own, "c": hosts["c"]})) == []


def test_hosts_that_have_not_evaluated_their_services_do_not_count():
    """As when a user's own play uses the filter."""
    assert faults(["a"], Inventory({"a": {"__l4proxy_fleet": {"host": "a"}}})) == []
