# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module ``packet_mark``: one mark for policy routing, through nftables or iptables."""

from __future__ import annotations

DOCUMENTATION = r"""
module: packet_mark
short_description: Mark packets of a sender, an interface or a transparent socket, for policy routing
version_added: 0.1.0
author:
  - The trueip.l4proxy authors (@trueip)
description:
  - Gives packets a mark that M(trueip.l4proxy.policy_rule) can look for. By default the first packet of a connection
    gives its mark to the connection, and all replies get it back before they are routed, those of containers behind
    published ports too.
  - Only the bits under O(mask) are touched, and they are set only while they are zero; marks of others on the same
    packet or connection stay as they are.
  - The marks of an owner are one nftables table (C(inet l4proxy_OWNER)) or a few iptables chains (C(L4PROXY_OWNER_IN)
    and so on, in table C(mangle)), replaced as a whole and in one go. A mark is found in it by its O(name).
extends_documentation_fragment:
  - trueip.l4proxy.attributes
attributes:
  check_mode:
    support: full
    details:
      - Without nft and iptables on the host, check mode takes the owner's marks for absent and warns.
  diff_mode:
    support: full
  platform:
    support: full
requirements:
  - nftables (1.0.6 or newer) or iptables (1.8, C(iptables-nft) or C(iptables-legacy)) on the host
options:
  name:
    description:
      - The name of the mark, up to 100 letters, digits, C(.), C(:), C(_), C(-). It is also a comment on its rules.
    type: str
    required: true
  id:
    description:
      - The mark, decimal or with C(0x), within O(mask). Required with O(state=present).
    type: str
  mask:
    description:
      - The bits that the marks of this owner use, decimal or with C(0x). All marks of an owner have the same mask.
      - V(0xff) is what the roles of this collection use; where they run, choose other bits.
    type: str
    default: "0xff"
  mac:
    description:
      - Mark what comes from these MAC addresses. Quote them, because YAML takes some for numbers.
      - Exactly one of O(mac), O(iif) and O(transparent) is required with
        O(state=present).
    type: list
    elements: str
  iif:
    description:
      - Mark what comes in by this interface. It has to exist.
    type: str
  transparent:
    description:
      - Mark packets that belong to a transparent socket of this host (C(IP_TRANSPARENT)), also one that is bound to the
        wildcard address. A rule for the mark can then deliver them locally, whatever their destination.
      - Each packet is marked by itself, connections are not.
      - With C(net.ipv4.conf.all.src_valid_mark=1) the kernel silently drops what such a rule delivers over IPv4.
    type: bool
    default: false
  via:
    description:
      - The next hops by which marked replies have to leave, IPv4 and IPv6. Replies that would leave by another one are
        dropped. Without it, nothing is dropped.
      - iptables cannot match a next hop. There, only replies that have lost their mark are dropped, with a warning.
    type: list
    elements: str
  conntrack:
    description:
      - Whether the connection keeps the mark and gives it to its replies. The usual, but for O(transparent=true).
      - With V(false) each incoming packet is marked by itself. Replies are then marked by the kernel, for TCP with
        C(net.ipv4.tcp_fwmark_accept=1), C(net.ipv4.fwmark_reflect=1) and C(net.ipv6.fwmark_reflect=1); containers
        behind published ports are not covered.
    type: bool
  owner:
    description:
      - Whose mark it is. The other marks of the owner stay when one is added, changed or removed.
      - V(return_path) and V(local_delivery) are refused, because M(trueip.l4proxy.routing_state) makes their marks
        what their document says.
    type: str
    default: packet_mark
  engine:
    description:
      - What holds the owner's marks. V(auto) is what holds them already, else V(nftables) where C(nft) works, else
        V(iptables), in whichever variant the host's command is.
      - Named explicitly, all marks of the owner move there; the new engine has them before the old one loses them.
    type: str
    choices: [auto, nftables, iptables]
    default: auto
  state:
    description:
      - V(present) makes the owner have this mark, exactly so. V(absent) removes the mark with this O(name).
    type: str
    choices: [present, absent]
    default: present
notes:
  - The mark is in the kernel only, and gone after a reboot. M(trueip.l4proxy.routing_state) stores its document for the
    keeper, which applies it at boot.
seealso:
  - module: trueip.l4proxy.policy_rule
  - module: trueip.l4proxy.routing_state
"""

EXAMPLES = r"""
- name: Connections that came in by this uplink (1) - mark them
  trueip.l4proxy.packet_mark:
    name: uplink
    id: 0x200
    mask: 0xff00
    iif: eth0

- name: Connections that came in by this uplink (2) - route their replies by its table
  trueip.l4proxy.policy_rule:
    family: ipv4
    priority: 1000
    fwmark: 0x200/0xff00
    table: 102

- name: Replies to what a load balancer sent go back through it, or nowhere
  trueip.l4proxy.packet_mark:
    name: lb1
    id: 0x300
    mask: 0xff00
    mac: "02:00:00:00:00:0b"
    via: [198.18.0.11, "2001:db8::11"]

- name: Without connection tracking, for very many TCP connections (with the sysctls named at conntrack)
  trueip.l4proxy.packet_mark:
    name: lb2
    id: 0x400
    mask: 0xff00
    mac: ["02:00:00:00:00:0c", "02:00:00:00:00:0d"]
    conntrack: false

- name: Packets for transparent sockets of a proxy that also routes
  trueip.l4proxy.packet_mark:
    owner: my_proxy
    name: sockets
    id: 1
    mask: 0x1
    transparent: true

- name: The mark of a load balancer that was taken out of service is gone
  trueip.l4proxy.packet_mark:
    name: lb0
    state: absent
"""

RETURN = r"""
changes:
  description: What was changed, or in check mode would be; sentences.
  returned: success
  type: list
  elements: str
  sample: ["add the nft table of marks: lb1 (0x300)"]
engine:
  description: What holds the owner's marks; V(none) where the owner has none.
  returned: success
  type: str
  sample: nftables
marks:
  description: All marks of the owner as they are afterwards, in the words of the options.
  returned: success
  type: list
  elements: dict
  sample:
    - {name: lb1, id: 768, mask: 65280, mac: ["02:00:00:00:00:0b"], via: ["198.18.0.11"]}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trueip.l4proxy.plugins.module_utils import _host_module
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import host, single_mark

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
    with _host_module.failures_told(module):
        owner = single_mark.owner_of(options)
        mark = single_mark.read(options) if options["state"] == "present" else None
        access = host.Host(runner=_host_module.command_runner(module))
        outcome = single_mark.ensure(
            options["name"], mark, access, owner=owner, wanted=options["engine"], check=module.check_mode
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
