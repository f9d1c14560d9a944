# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A lab for the doctor: an intact host for every strategy, with its documents stored as the roles do it.

a is a proxy with method rules, a2 with method socket_mark. b and c are backends with strategy mark, c with two links;
d has strategy address. a is in two networks. The kernel of a2 forwards a service.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from types import SimpleNamespace

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor import finding, registry
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents, store

from tests.lab.netns import NamespaceLab
from tests.support.addresses import BITS, FAMILIES, address_of
from tests.support.doctor import doctor_facts
from tests.support.routing import PORT, Engine, local_delivery, return_path

HOSTS = ["client", "router", "a", "a2", "b", "c", "d"]
TWO_LEGS = {"a": ["inside", "side"], "c": ["inside", "side"]}
CLIENTS = {"ipv4": "198.18.1.10", "ipv6": "2001:db8:1::10"}
SECOND = {"ipv4": "198.18.0.33", "ipv6": "2001:db8::33"}
SECOND_TABLE = 20111
VIRTUAL = {"ipv4": "198.18.0.100", "ipv6": "2001:db8::100"}


def settings(key: str, *links: str) -> list[dict]:
    families = ("ipv4",) if key == "send_redirects" else FAMILIES
    return [
        {"name": f"net.{family}.conf.{link}.{key}", "value": "0"} for family in families for link in ("all", *links)
    ]


def by_mark_of_sockets() -> dict:
    rules = [
        {"family": family, "priority": 1100, "fwmark": 12, "fwmask": 255, "action": "lookup", "table": 20100}
        for family in FAMILIES
    ]
    return {**local_delivery(), "rules": rules, "sysctls": settings("send_redirects", "eth0")}


def by_address(proxy) -> dict:
    """The document of a backend with strategy address."""
    rules, routes = [], []
    for family, own in SECOND.items():
        source = {"family": family, "src": f"{own}/{BITS[family]}"}
        rules.append({**source, "priority": 1100, "action": "lookup", "table": SECOND_TABLE})
        rules.append({**source, "priority": 1101, "action": "unreachable"})
        route = {"family": family, "table": SECOND_TABLE, "dst": "default", "type": "unicast", "src": own}
        routes.append({**route, "via": address_of(proxy, family)})
    owner = {"schema": 1, "owner": "return_path", "protocol": 202}
    addresses = [{"family": family, "address": own, "dev": "eth0"} for family, own in SECOND.items()]
    sections = {"rules": rules, "routes": routes, "addresses": addresses}
    return {**owner, **sections, "sysctls": settings("accept_redirects", "eth0")}


def kernel_datapath(backend) -> dict:
    """The document of a proxy whose kernel forwards a service."""
    fields = {"name": "web", "protocol": "tcp", "port": 80}
    services = [
        {**fields, "family": family, "address": VIRTUAL[family]}
        | {"backends": [{"name": "b", "address": address_of(backend, family), "port": PORT}]}
        for family in FAMILIES
    ]
    bits = {"fwmark": 255, "fwmask": 255, "action": "lookup", "table": 254}
    rules = [{"family": family, "priority": 1099, **bits} for family in FAMILIES]
    loose = {"name": "net.netfilter.nf_conntrack_tcp_loose", "value": "1"}
    sections = {"rules": rules, "sysctls": [loose], "services": services, "forwarding": list(FAMILIES)}
    return {"schema": 1, "owner": "kernel_datapath", "protocol": 204, **sections}


def documents_by_host(lab: NamespaceLab) -> dict[str, dict]:
    a, side = lab["a"], lab["a"].on("side")
    on_side = SimpleNamespace(name="a", ipv4=side.ipv4, ipv6=side.ipv6, mac=side.mac)
    beyond = return_path(on_side)
    for route in beyond["routes"]:
        route["dev"] = "eth1"
    near = {**local_delivery(lab["b"], lab["c"].on("side")), "sysctls": settings("send_redirects", "eth0", "eth1")}
    return {
        "a": near,
        "a2": by_mark_of_sockets(),
        "b": {**return_path(a), "sysctls": settings("accept_redirects", "eth0")},
        "c": {**beyond, "sysctls": settings("accept_redirects", "eth1")},
        "d": by_address(a),
    }


class Clinic:
    """The lab, its documents, and the doctor's findings on its hosts."""

    def __init__(self, lab: NamespaceLab, directory):
        self.lab, self.directory = lab, directory
        self.documents = documents_by_host(lab)
        self.kernel = {"a2": kernel_datapath(lab["b"])}
        for name in self.documents:
            (directory / name).mkdir()
            for data in self.stored(name):
                loaded = documents.load(data)
                (directory / name / f"{loaded.owner}.json").write_text(store.content_of(loaded))

    def stored(self, name: str) -> list[dict]:
        return [documents[name] for documents in (self.documents, self.kernel) if name in documents]

    def heal(self, name: str) -> None:
        """Apply the host's documents, as the keeper does."""
        for data in self.stored(name):
            self.lab.engine.apply(self.lab[name], data)

    def complaints(self, name: str, ports=(), wanted: dict | None = None, **options) -> list[finding.Finding]:
        """Failures and warnings of a host, in the order of the report; with ``wanted``, before it is applied."""
        facts = doctor_facts(self.lab[name], self.lab.engine, self.directory / name, wanted, CLIENTS, ports, **options)
        findings = finding.ordered(registry.examine(facts))
        return [item for item in findings if item.status in (finding.FAIL, finding.WARN)]


@contextmanager
def raise_clinic(prefix: str, tmp_path_factory):
    with NamespaceLab(f"{prefix}{os.getpid()}", HOSTS, TWO_LEGS) as lab:
        lab.engine = Engine(tmp_path_factory.mktemp("engine"))
        clinic = Clinic(lab, tmp_path_factory.mktemp("documents"))
        for name in clinic.documents:
            clinic.heal(name)
        for name in ("b", "c"):
            lab.nginx(name, ports=[PORT])
        yield clinic
