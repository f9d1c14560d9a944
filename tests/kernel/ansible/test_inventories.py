# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Inventories as people write them, by the real ansible-playbook on hosts with two interfaces: what is derived, or the
sentence with which the playbook ``site`` refuses, and that nothing was touched.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil

import pytest

from tests.docs.sandbox import Sandbox
from tests.lab import ansible
from tests.lab.netns import NamespaceLab
from tests.support.waiting import eventually

HOSTS = ("a", "b", "c")
BOTH = {name: ["inside", "side"] for name in HOSTS}
WEB = {"name": "web", "listen": ["0.0.0.0:80", "[::]:80"], "backends": ["b:8080", "c:8080"]}

# Writes what the roles derive on each host to a file on the controller. With a condition, a role skips hosts.
DERIVE = """
- hosts: all
  gather_facts: false
  ignore_unreachable: true
  tasks:
    - ansible.builtin.include_role: {name: trueip.l4proxy.keeper, tasks_from: fleet}
      when: only is not defined or inventory_hostname in only
    - ansible.builtin.copy:
        dest: "{{ out }}/{{ inventory_hostname }}"
        mode: "0644"
        content: >-
          {{ l4proxy_services | trueip.l4proxy.forwarder_config(__l4proxy_fleet, hostvars, {}) | to_json
             if inventory_hostname in groups['proxies'] else
             l4proxy_services | trueip.l4proxy.return_path(__l4proxy_fleet, hostvars) | to_json }}
      delegate_to: localhost
      when: __l4proxy_fleet.reachable | default(false)
"""


class Controller:
    """Runs playbooks on the hosts of a lab; ``down`` are powered off."""

    def __init__(self, lab, directory):
        self.lab, self.directory = lab, directory
        self.hosts = {name: Sandbox(lab, name) for name in HOSTS}

    def play(self, playbook, inventory, *arguments, down=(), **variables):
        """Run a playbook; return its result, and what was derived, by host."""
        state, out = self.directory / "state" / self.lab.prefix, self.directory / "out"
        shutil.rmtree(out, ignore_errors=True)
        for directory in (state, out):
            directory.mkdir(parents=True, exist_ok=True)
        hosts = {
            name: {"netns": self.lab.netns_of(name), "pid": 0, "enter": [] if name in down else host.argv([])}
            for name, host in self.hosts.items()
        }
        (state / "lab.json").write_text(json.dumps({"hosts": hosts}), encoding="utf-8")
        for name, content in (("inventory.yml", json.dumps(inventory)), ("derive.yml", DERIVE)):
            (self.directory / name).write_text(content, encoding="utf-8")
        run = ansible.play(
            self.lab.prefix,
            playbook,
            [self.directory / "inventory.yml"],
            "--extra-vars",
            f"out={out}",
            *arguments,
            variables={"L4PROXY_LAB_STATE": str(self.directory / "state"), **variables},
        )
        return run, {path.name: json.loads(path.read_text(encoding="utf-8")) for path in out.iterdir()}

    def derive(self, inventory, *arguments, **options):
        """What is derived for each host that is up."""
        run, found = self.play(str(self.directory / "derive.yml"), inventory, *arguments, **options)
        assert not any(counts["failed"] for counts in run.recap.values()), run.output
        return found

    def refused(self, inventory, *arguments, **options):
        """The faults with which ``site`` refuses before any change."""
        run, _none = self.play("trueip.l4proxy.site", inventory, *arguments, **options)
        assert run.status, run.output
        assert run.changed == {}, run.output
        assert "Nothing was changed" in run.output, run.output
        # As Ansible writes a message: JSON on one line, with quotes escaped.
        (line, *_again) = [line for line in run.output.splitlines() if line.startswith("fatal: [a]: FAILED! => ")]
        return json.loads(line.partition("=> ")[2])["msg"][1:]


def inventory(services=(WEB,), everywhere=None, **hosts):
    """An inventory with proxy a and backends b and c; variables of all hosts and of each."""
    found = {name: {**(everywhere or {}), **hosts.get(name, {})} for name in HOSTS}
    return {
        "all": {
            "vars": {"l4proxy_services": list(services)} if services else {},
            "children": {
                "proxies": {"hosts": {"a": found["a"]}},
                "backends": {"hosts": {name: found[name] for name in ("b", "c")}},
            },
        }
    }


def addresses(document):
    """The addresses of b, of c and of whatever a forwarder's config has for a backend."""
    return [[backend["ipv4"], backend["ipv6"]] for backend in document["services"][0]["backends"]]


@pytest.fixture(scope="module")
def controller(tmp_path_factory):
    with NamespaceLab(f"inv{os.getpid()}", ["router", *HOSTS], BOTH) as lab:
        yield Controller(lab, tmp_path_factory.mktemp("controller"))


INSIDE = [["198.18.0.21", "2001:db8::21"], ["198.18.0.22", "2001:db8::22"]]
SIDE = [["198.18.2.21", "2001:db8:2::21"], ["198.18.2.22", "2001:db8:2::22"]]
ETH1 = {"l4proxy_interface": "eth1"}
BY_FACTS = {
    "l4proxy_address": [
        "{{ ansible_facts['eth1']['ipv4']['address'] }}/24",
        "{{ (ansible_facts['eth1']['ipv6'] | selectattr('scope', 'eq', 'global') | first).address }}/64",
    ]
}


@pytest.fixture(scope="module")
def derived(controller):
    """What is derived where all hosts have these variables."""
    return functools.lru_cache(lambda name: controller.derive(inventory(everywhere=VARIABLES[name])))


VARIABLES = {"nothing": {}, "an interface": ETH1, "facts": BY_FACTS}


slow = pytest.mark.slow
WHERE = [("nothing", INSIDE), ("an interface", SIDE), pytest.param("facts", SIDE, marks=slow)]


@pytest.mark.parametrize(("name", "expected"), WHERE)
def test_addresses_are_derived_from_interfaces_or_facts(derived, name, expected):
    found = derived(name)
    assert addresses(found["a"]) == expected
    via = {route["via"] for name in ("b", "c") for route in found[name]["routes"]}
    assert via == {address.replace(":21", ":11").replace(".21", ".11") for address in expected[0]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["an interface", "facts"])
def test_an_unreachable_backend_keeps_its_last_address(controller, derived, name):
    known, host = derived(name)["a"], controller.hosts["a"]
    host.write("/etc/l4proxy/forwarder.json", json.dumps(known))
    try:
        assert controller.derive(inventory(everywhere=VARIABLES[name]), down=["b"])["a"] == known
    finally:
        host.run(["rm", "/etc/l4proxy/forwarder.json"])


@pytest.mark.slow
def test_auto_keeps_the_datapath_that_a_proxy_has_stored(controller):
    """On both ends, also if no proxy is in the run. Without a stored config, auto chooses the kernel."""
    auto = inventory(
        [{**WEB, "listen": ["198.18.0.100:80"], "backends": ["b:8080"], "datapath": "auto", "proxies": ["a", "c"]}]
    )
    auto["all"]["children"]["proxies"]["hosts"]["c"] = auto["all"]["children"]["backends"]["hosts"].pop("c")
    host = controller.hosts["a"]
    first = controller.derive(auto)
    (service,) = first["a"]["services"]
    assert (service.pop("datapath"), [mark["last_sender"] for mark in first["b"]["marks"]]) == (
        "kernel",
        [["tcp/8080"]] * 2,
    )
    host.write("/etc/l4proxy/forwarder.json", json.dumps(first["a"]))
    try:
        second = controller.derive(auto)
        assert [second[name]["services"] for name in "ac"] == [[service]] * 2
        assert "last_sender" not in second["b"]["marks"][0]
        assert controller.derive(auto, "--limit", "b") == {"b": second["b"]}
    finally:
        host.run(["rm", "/etc/l4proxy/forwarder.json"])


@pytest.mark.slow
def test_a_role_gathers_facts_of_peers_that_a_condition_skipped(controller, derived):
    found = controller.derive(inventory(), "--extra-vars", json.dumps({"only": ["b"]}))
    assert found == {"b": derived("nothing")["b"]}


def test_the_play_strategy_free_works(controller, derived):
    """One host is slow; the others gather its facts themselves."""
    controller.hosts["c"].write("/etc/slow", '#!/bin/sh\nsleep 2; exec /usr/bin/python3 "$@"\n', "0755")
    slow = inventory(c={"ansible_python_interpreter": "/etc/slow"})
    assert controller.derive(slow, ANSIBLE_STRATEGY="free") == derived("nothing")


def test_temporary_ipv6_addresses_are_not_used(controller):
    """With use_tempaddr, the kernel adds temporary addresses for an address with mngtmpaddr."""
    b = controller.lab["b"]

    def ip(command):
        return b.run(["ip", "-6", *command.split()]).stdout

    b.sysctl("net.ipv6.conf.eth0.use_tempaddr", "2")
    ip("address replace 2001:db8::21/64 dev eth0 mngtmpaddr nodad")
    try:
        eventually(lambda: "temporary" in ip("address show dev eth0 temporary"))
        # Facts take this for the address of the default route.
        assert "src 2001:db8::21 " not in ip("route get 2404:6800:400a:800::1012")
        # For a host in the play, and for one outside of it.
        for arguments in ([], ["--limit", "a"]):
            assert addresses(controller.derive(inventory(), *arguments)["a"]) == INSIDE
    finally:
        b.sysctl("net.ipv6.conf.eth0.use_tempaddr", "0")
        ip("address flush dev eth0 temporary")
        ip("address replace 2001:db8::21/64 dev eth0 nodad")


@pytest.mark.slow
def test_a_labelled_address_gives_the_subnet(controller):
    """As `iface eth0:1` in /etc/network/interfaces adds it: facts list it as an interface without a device."""
    command = "ip address {0} 198.18.5.{1}/24 dev eth0 label eth0:1"
    numbers = {"a": 11, "b": 21, "c": 22}
    for name, number in numbers.items():
        controller.lab[name].run(command.format("add", number).split())
    try:
        found = controller.derive(inventory(everywhere={"l4proxy_interface": "eth0:1"}))
        assert [row[0] for row in addresses(found["a"])] == ["198.18.5.21", "198.18.5.22"]
        assert {route["dev"] for route in found["b"]["routes"]} == {"eth0"}
    finally:
        for name, number in numbers.items():
            controller.lab[name].run(command.format("del", number).split())


HAS = "eth0 (198.18.0.21, 2001:db8::21), eth1 (198.18.2.21, 2001:db8:2::21), lo"
DEFINE = "; every host needs the whole list, so define the variables that it uses for all hosts (group_vars/all)"
ETH2 = {"l4proxy_address": "{{ ansible_facts['eth2']['ipv4']['address'] }}/24"}
NO_ETH2 = "l4proxy_address of c cannot be evaluated: object of type 'dict' has no attribute 'eth2'; "
PORT = {**WEB, "backends": ["b:{{ web_port }}", "c:8080"]}
OTHER = {**WEB, "backends": ["c:8080"]}

# c is a proxy as well.
TABLES = inventory(a={"l4proxy_hash_table": "{{ table }}", "table": "maglev"})
TABLES["all"]["children"]["proxies"]["hosts"]["c"] = {}

# (name, inventory, hosts that are down, faults)
REFUSED = [
    ("an interface and facts that are not there", inventory(b={"l4proxy_interface": "eth2"}, c=ETH2), [], [
        f"l4proxy_interface of b: b has no interface 'eth2'; it has {HAS}",
        f"{NO_ETH2}c has {HAS.replace('21', '22')}",
    ]),
    ("facts of a host that is down", inventory(c=ETH2), ["c"], [
        NO_ETH2 + "the facts of c could not be gathered, and no earlier run has stored its address: "
        "start c, or write its address as a value",
    ]),
    ("two lists", inventory(c={"l4proxy_services": [OTHER]}), [], [
        'l4proxy_services differs between a and c: l4proxy_services[0].backends[0] is "b:8080" on a, and "c:8080" on '
        "c; both ends are derived from one list, so put all services into group_vars/all, each with the `proxies` "
        "that serve it, or give each site an inventory of its own",
    ]),
    ("a variable of proxies only", inventory([PORT], a={"web_port": 8080}), [], [
        f"l4proxy_services cannot be evaluated on b and c: 'web_port' is undefined{DEFINE}",
    ]),
    ("a variable of one backend only", inventory([PORT], b={"web_port": 8080}), [], [
        f"l4proxy_services cannot be evaluated on a and c: 'web_port' is undefined{DEFINE}",
    ]),
    ("an undefined variable", inventory(None, everywhere={"l4proxy_services": "{{ web_services }}"}), [], [
        f"l4proxy_services cannot be evaluated on a, b and c: 'web_services' is undefined{DEFINE}",
    ]),
    ("a list of proxies only", inventory(None, a={"l4proxy_services": [WEB]}), [], [
        "l4proxy_services is defined on a, but not on b and c; it belongs in group_vars/all, because both ends are "
        "derived from it",
    ]),
    ("two hash tables", TABLES, [], [
        "l4proxy_hash_table is maglev on a, and ring on c; a client would get another backend at each proxy, so set it "
        "once, in group_vars/all",
    ]),
]  # fmt: skip
QUICK = ("an interface and facts that are not there", "a variable of proxies only")
ROWS = [pytest.param(*row[1:], id=row[0], marks=() if row[0] in QUICK else slow) for row in REFUSED]


@pytest.mark.parametrize(("written", "down", "faults"), ROWS)
def test_site_refuses_before_any_change(controller, written, down, faults):
    assert controller.refused(written, down=down) == faults


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--limit", "a"]], ids=["all", "a alone"])
def test_a_host_without_ip_is_refused(controller, arguments):
    """As after debootstrap. A declared address is enough."""
    host = controller.hosts["b"]
    places = host.run(["sh", "-c", "for d in /usr/bin /usr/sbin /bin /sbin; do readlink -e $d/ip; done | sort -u"])
    for place in places.stdout.split():
        host.run(["mount", "--bind", "/dev/null", place])
    try:
        declared = inventory(b={"l4proxy_address": ["198.18.0.21/24", "2001:db8::21/64"]})
        assert addresses(controller.derive(declared, *arguments)["a"]) == INSIDE
        assert controller.refused(inventory(), *arguments) == [
            "the addresses of b cannot be read, because it lacks the command ip: install the package iproute2 on b, "
            "or declare l4proxy_address in its host_vars, with a prefix length"
        ]
    finally:
        for place in places.stdout.split():
            host.run(["umount", place])


@pytest.mark.slow
def test_an_unreachable_peer_is_reported(controller):
    """The host is up, but Ansible finds no Python there."""
    (fault,) = controller.refused(inventory(b={"ansible_python_interpreter": "/none"}), "--limit", "a")
    assert fault.startswith("the address of b is unknown to a: its facts could not be gathered")


def renamed(names):
    """The inventory with other names for the hosts a, b and c."""
    found = copy.deepcopy(inventory([{**WEB, "backends": [f"[{name}]:8080" for name in names[1:]]}]))
    found["all"]["children"] = {
        group: {"hosts": {name: {"l4proxy_lab_host": host} for name, host in hosts}}
        for group, hosts in (("proxies", [(names[0], "a")]), ("backends", list(zip(names[1:], "bc"))))
    }
    return found


@pytest.mark.parametrize("number", [pytest.param("198.18.0.{0}", marks=slow), "2001:db8::{0}"], ids=["IPv4", "IPv6"])
def test_hosts_can_be_named_by_their_address(controller, number):
    names = [number.format(one) for one in (11, 21, 22)]
    found = controller.derive(renamed(names))
    assert addresses(found[names[0]]) == INSIDE
    assert [mark["name"] for mark in found[names[1]]["marks"]] == names[:1]
