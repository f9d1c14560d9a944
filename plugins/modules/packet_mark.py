# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module ``packet_mark``: one packet mark for policy routing, in nftables or iptables."""

from __future__ import annotations

DOCUMENTATION = r"""
module: packet_mark
short_description: Mark packets by sender, interface or transparent socket, for policy routing
version_added: 0.1.0
author:
  - The trueip.l4proxy authors (@trueip)
description:
  - Sets a mark on packets, which a rule of M(trueip.l4proxy.policy_rule) can match. By default, the first packet of a
    connection marks the connection, and all its replies get the mark before they are routed. This includes replies of
    containers behind published ports.
  - Only the bits of O(mask) are changed, and only while they are zero. Other marks on the same packet or connection
    stay.
  - All marks of an owner are in one nftables table (C(inet l4proxy_OWNER)) or in a few iptables chains of table
    C(mangle) (C(L4PROXY_OWNER_IN) and so on). They are replaced together, in one transaction. A mark is identified by
    its O(name).
extends_documentation_fragment:
  - trueip.l4proxy.attributes
attributes:
  check_mode:
    support: full
    details:
      - Without nft and iptables on the host, check mode warns and assumes that the owner has no marks.
  diff_mode:
    support: full
  platform:
    support: full
requirements:
  - nftables (1.0.6 or newer) or iptables (1.8, C(iptables-nft) or C(iptables-legacy)) on the host
options:
  name:
    description:
      - The name of the mark, up to 100 letters, digits, C(.), C(:), C(_), C(-). It is also the comment of its rules.
    type: str
    required: true
  id:
    description:
      - The mark, decimal or with C(0x); within O(mask). Required with O(state=present).
    type: str
  mask:
    description:
      - The bits that the marks of this owner use, decimal or with C(0x). All marks of an owner have the same mask.
      - The roles of this collection use V(0xff). On hosts with these roles, choose other bits.
    type: str
    default: "0xff"
  mac:
    description:
      - Mark packets from these MAC addresses. Quote them, because YAML reads some as numbers.
      - Exactly one of O(mac), O(iif) and O(transparent) is required with O(state=present).
    type: list
    elements: str
  iif:
    description:
      - Mark packets that arrive on this interface. It must exist.
    type: str
  transparent:
    description:
      - Mark packets for a transparent socket of this host (C(IP_TRANSPARENT)), even if it is bound to the wildcard
        address. A rule for the mark can then deliver them locally, whatever their destination.
      - Marks packets only, not connections.
      - With C(net.ipv4.conf.all.src_valid_mark=1), the kernel silently drops IPv4 packets that such a rule delivers.
    type: bool
    default: false
  via:
    description:
      - The next hops, IPv4 and IPv6, that marked replies must use. Replies that would use another one are dropped. By
        default, nothing is dropped.
      - iptables cannot match a next hop. It drops only replies that lost their mark, and the module warns.
    type: list
    elements: str
  conntrack:
    description:
      - Whether the connection keeps the mark, so that its replies get it. The default is V(true), except with
        O(transparent=true).
      - With V(false), each incoming packet is marked individually. The kernel then marks the replies, for TCP only, if
        C(net.ipv4.tcp_fwmark_accept=1), C(net.ipv4.fwmark_reflect=1) and C(net.ipv6.fwmark_reflect=1) are set.
        Containers behind published ports are not covered.
    type: bool
  owner:
    description:
      - The owner of the mark. The owner's other marks stay when one is added, changed or removed.
      - V(return_path) and V(local_delivery) are refused, because M(trueip.l4proxy.routing_state) manages their marks.
    type: str
    default: packet_mark
  engine:
    description:
      - The tool that sets the owner's marks. V(auto) keeps the one in use. If none is in use, it selects V(nftables) if
        C(nft) works, else V(iptables), in the variant (nft or legacy) of the host's C(iptables) command.
      - If an explicit engine differs from the one in use, it gets all marks of the owner before they are removed from
        the old one.
    type: str
    choices: [auto, nftables, iptables]
    default: auto
  state:
    description:
      - V(present) adds the mark, or changes it to what the options say. V(absent) removes the mark with this O(name).
    type: str
    choices: [present, absent]
    default: present
notes:
  - The mark is not restored after a reboot. M(trueip.l4proxy.routing_state) stores its document for the keeper, which
    applies it at boot.
seealso:
  - module: trueip.l4proxy.policy_rule
  - module: trueip.l4proxy.routing_state
"""

EXAMPLES = r"""
- name: Mark connections that arrive on an uplink
  trueip.l4proxy.packet_mark:
    name: uplink
    id: 0x200
    mask: 0xff00
    iif: eth0

- name: Route the replies of these connections by the table of that uplink
  trueip.l4proxy.policy_rule:
    family: ipv4
    priority: 1000
    fwmark: 0x200/0xff00
    table: 102

- name: Mark connections from a load balancer, and drop replies that would not go back through it
  trueip.l4proxy.packet_mark:
    name: lb1
    id: 0x300
    mask: 0xff00
    mac: "02:00:00:00:00:0b"
    via: [198.18.0.11, "2001:db8::11"]

- name: Mark packets without connection tracking (needs the sysctls listed at conntrack)
  trueip.l4proxy.packet_mark:
    name: lb2
    id: 0x400
    mask: 0xff00
    mac: ["02:00:00:00:00:0c", "02:00:00:00:00:0d"]
    conntrack: false

- name: Mark packets for the transparent sockets of a proxy that also routes
  trueip.l4proxy.packet_mark:
    owner: my_proxy
    name: sockets
    id: 1
    mask: 0x1
    transparent: true

- name: Remove the mark of a former load balancer
  trueip.l4proxy.packet_mark:
    name: lb0
    state: absent
"""

RETURN = r"""
changes:
  description: What was changed, or in check mode would be; a sentence each.
  returned: success
  type: list
  elements: str
  sample: ["add the nft table of marks: lb1 (0x300)"]
engine:
  description: The tool that sets the owner's marks; V(none) if the owner has no marks.
  returned: success
  type: str
  sample: nftables
marks:
  description: All marks of the owner afterwards, with the options as keys.
  returned: success
  type: list
  elements: dict
  sample:
    - {name: lb1, id: 768, mask: 65280, mac: ["02:00:00:00:00:0b"], via: ["198.18.0.11"]}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trueip.l4proxy.plugins.module_utils import _host_module
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import single_mark
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile.host import Host

ARGUMENTS = {
    "name": {"type": "str", "required": True},
    "id": {"type": "str"},
    "mask": {"type": "str", "default": "0xff"},
    "mac": {"type": "list", "elements": "str"},
    "iif": {"type": "str"},
    "transparent": {"type": "bool", "default": False},
    "via": {"type": "list", "elements": "str"},
    "conntrack": {"type": "bool"},
    "owner": {"type": "str", "default": "packet_mark"},
    "engine": {"type": "str", "choices": ["auto", "nftables", "iptables"], "default": "auto"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec=ARGUMENTS, supports_check_mode=True, required_if=[("state", "present", ["id"])]
    )
    options = module.params
    with _host_module.failing_on_errors(module):
        owner = single_mark.owner_of(options)
        mark = single_mark.read(options) if options["state"] == "present" else None
        host = Host(runner=_host_module.command_runner(module))
        outcome = single_mark.ensure(
            options["name"], mark, host, owner=owner, requested=options["engine"], check=module.check_mode
        )
    for sentence in outcome.warnings:
        module.warn(sentence)
    module.exit_json(
        changed=outcome.changed,
        changes=list(outcome.changes),
        diff=list(outcome.diff),
        engine=outcome.after.engine if outcome.after.marks else None,
        marks=[single_mark.dump(mark) for mark in outcome.after.marks],
    )


if __name__ == "__main__":
    main()
