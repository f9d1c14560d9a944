# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What keeps a proxy's kernel from forwarding services."""

from __future__ import annotations

from dataclasses import replace

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts import model
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts.model import (
    Conntrack,
    Drift,
    KernelTarget,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.firewall import iptables_rules, nft_rules
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.firewall.model import Ruleset
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.documents import Document
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document.kernel_service import (
    KernelService,
    Server,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink.route_query import RouteAnswer
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile.change import Change

from .. import cases
from ..cases import CLIENT, GIVEN, LOCAL_DELIVERY, PROXY, B, proxy, setting

VIRTUAL = "198.18.0.100"
SERVICE = KernelService("web", "ipv4", "tcp", VIRTUAL, 80, (Server("b", B, 8080),))
DOCUMENT = Document("kernel_datapath", 204, services=(SERVICE,), forwarding=("ipv4", "ipv6"))
TARGET = KernelTarget("web", "ipv4", "tcp", VIRTUAL, 80, B, 8080, "eth0", "eth0", RouteAnswer("unicast", dev="eth0"))
LIMITED = replace(DOCUMENT, services=(replace(SERVICE, connections=300000),))
FORWARDS = dict.fromkeys((*model.FORWARDING.values(), model.TCP_LOOSE, "net.ipv4.conf.eth0.forwarding"), "1")
KERNEL = replace(
    PROXY,
    documents=(LOCAL_DELIVERY, DOCUMENT),
    kernel_targets=(TARGET,),
    conntrack=Conntrack(100, 262144),
    settings={**PROXY.settings, **FORWARDS},
)
REFUSED = (replace(TARGET, arrival=RouteAnswer("refused", error="EXDEV")),)


def kernel(**changes):
    return replace(KERNEL, **changes)


def off(name):
    return kernel(settings={**KERNEL.settings, name: "0"})


def filtered(*rules, policy="ACCEPT", table="filter", **changes):
    chains = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
    saved = [f"*{table}", *(f":{name} {policy if name == 'FORWARD' else 'ACCEPT'} [0:0]" for name in chains)]
    saved += [f"-A {rule}" for rule in rules]
    return kernel(ruleset=Ruleset(iptables_rules.parse("\n".join([*saved, "COMMIT"]), "ipv4")), **changes)


def nft(*expressions, **changes):
    """A forward chain of nft with policy drop."""
    where = {"family": "inet", "table": "firewalld"}
    chain = {**where, "name": "FORWARD", "type": "filter", "hook": "forward", "prio": 10, "policy": "drop"}
    rules = [{"rule": {**where, "chain": "FORWARD", "expr": [*tests, {"accept": None}]}} for tests in expressions]
    return kernel(ruleset=nft_rules.parse({"nftables": [{"chain": chain}, *rules]}), **changes)


STATE = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}
STATUS = {"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}}
ESTABLISHED = "FORWARD -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT"
ACCEPTED = (f"FORWARD -d {B} -p tcp --dport 8080 -j ACCEPT", f"FORWARD -s {B} -p tcp --sport 8080 -j ACCEPT")
DOCKER = "POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"
BRIDGED = kernel(
    bridges=("br0",),
    only_services=frozenset({"ipv4", "ipv6"}),
    settings={**KERNEL.settings, model.BRIDGED["ipv4"]: "1"},
)
PROBLEMS = [
    (kernel(drift=(Drift("kernel_datapath", (Change("services", "restore", (SERVICE,), (SERVICE,)),)),)),
     "fail kernel_services", "restore the nft table of services"),
    (off("net.ipv4.ip_forward"), "fail forwarding", "net.ipv4.ip_forward is 0, so this host does not forward ipv4"),
    (off("net.ipv6.conf.all.forwarding"), "fail forwarding", "does not forward ipv6 packets"),
    (off("net.ipv4.conf.eth0.forwarding"), "fail forwarding", "net.ipv4.conf.eth0.forwarding is 0"),
    (off(model.TCP_LOOSE), "fail tcp_loose", "is 0, so conntrack ignores connections that another proxy began"),
    (filtered(policy="DROP"), "fail forward_filter",
     "drops clients' packets of kernel service web (the policy of chain iptables filter FORWARD). The kernel"),
    (filtered(f"FORWARD -s {CLIENT} -j REJECT"), "fail forward_filter", "`iptables -I FORWARD -p tcp -d 198.18.0.21"),
    (filtered(ESTABLISHED, policy="DROP"), "warn forward_filter", "drops replies after a take-over of kernel"),
    (nft([STATE], [STATUS]), "warn forward_filter",
     "`nft insert rule TABLE CHAIN ip daddr 198.18.0.21 tcp dport 8080 accept` and `nft insert rule TABLE CHAIN ip sa"),
    (filtered("FORWARD -m set --match-set ok src -j ACCEPT", policy="DROP"), "warn forward_filter",
     "a rule before it that the doctor cannot interpret"),
    (filtered(f"PREROUTING -d {VIRTUAL} -p tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80", table="nat"),
     "fail virtual_address", "translates tcp port 80 of 198.18.0.100, which belong to kernel service web"),
    (filtered("PREROUTING -p tcp --dport 80 -m set --match-set web dst -j REDIRECT", table="nat"),
     "warn virtual_address", "translates tcp port 80"),
    (filtered("PREROUTING -j NOTRACK", table="raw"), "fail virtual_address", "disables conntrack for tcp port 80"),
    (filtered("FORWARD -p tcp -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY --mss 1460"),
     "fail virtual_address", "answers in place of tcp port 80"),
    (filtered("POSTROUTING -o eth0 -j MASQUERADE", table="nat", forwarder=None), "fail source_nat",
     "rewrites the source address of what the kernel forwards to 198.18.0.21"),
    (filtered(DOCKER, table="nat", only_services=frozenset({"ipv4"})), "warn others_forward",
     "`sysctl -w net.ipv4.ip_forward=1`"),
    (BRIDGED, "warn others_forward", "net.bridge.bridge-nf-call-iptables is 1, so frames between the ports of br0"),
    (setting(kernel(kernel_targets=REFUSED), conf__eth0__rp_filter="1"), "fail rp_filter",
     "Clients' packets to 198.18.0.100 arrive there"),
    (kernel(conntrack=Conntrack(950, 1000)), "fail conntrack", "the kernel forwards no connection without an entry"),
    (kernel(conntrack=Conntrack(1, 262144, 7)), "warn conntrack", "so its client times out"),
    (kernel(documents=(LOCAL_DELIVERY, LIMITED)), "warn conntrack", "limits of kernel services admit 300000"),
]  # fmt: skip
FINE = [
    *[(check, KERNEL) for check in ("forwarding", "tcp_loose", "forward_filter", "virtual_address", "ip_forward")],
    ("forwarding", replace(off("net.ipv4.ip_forward"), applied=False)),
    ("forward_filter", filtered(*ACCEPTED, policy="DROP")),
    ("forward_filter", filtered("FORWARD -i docker0 -j DROP")),
    ("virtual_address", filtered("PREROUTING -p tcp --dport 81 -j REDIRECT", table="nat")),
    *[(check, filtered(DOCKER, table="nat")) for check in ("source_nat", "others_forward")],
    ("others_forward", replace(BRIDGED, only_services=frozenset({"ipv6"}))),
    ("others_forward", filtered(DOCKER, table="nat", only_services=frozenset({"ipv6"}))),
    ("rp_filter", kernel(kernel_targets=REFUSED)),
    ("conntrack", proxy(conntrack=Conntrack(950, 1000), **GIVEN)),
]

test_a_problem_is_reported_with_a_reason_and_a_fix = cases.reports(PROBLEMS)
test_a_similar_host_without_the_problem_is_fine = cases.is_fine(FINE)


def test_a_healthy_proxy_with_kernel_services_has_no_problem():
    assert cases.problems(KERNEL) == cases.problems(replace(KERNEL, applied=False)) == []
