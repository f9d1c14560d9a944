# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module ``policy_rule``: one policy rule, as in ip-rule(8)."""

from __future__ import annotations

DOCUMENTATION = r"""
module: policy_rule
short_description: Add or remove one policy rule (ip rule)
version_added: 0.1.0
author:
  - The trueip.l4proxy authors (@trueip)
description:
  - Adds, changes or removes one policy rule for IPv4 or IPv6. Rules select the routing table for a packet by more than
    its destination.
  - A rule is identified by its O(family), its O(priority), all its selectors, and its O(protocol). If its O(table) or
    O(action) differs, it is replaced; the new rule is added before the old one is removed.
  - Rules of others are never touched. A rule that cannot be applied is refused before anything is changed.
extends_documentation_fragment:
  - trueip.l4proxy.attributes
  - trueip.l4proxy.single_object
options:
  priority:
    description:
      - The priority of the rule, 1 to 32765. Rules with lower numbers come first. The table V(main) is at 32766.
      - Required, because the kernel would otherwise choose one, and a second run would add a second rule.
    type: int
    required: true
  from:
    description:
      - The source addresses, as an address or a prefix.
    type: str
  to:
    description:
      - The destination addresses, as an address or a prefix.
    type: str
  iif:
    description:
      - The interface that the packet arrived on; V(lo) for packets that the host itself sends. It must exist.
    type: str
  oif:
    description:
      - The interface that the sending socket is bound to. It must exist.
    type: str
  fwmark:
    description:
      - The packet's mark, 1 to 0xffffffff, decimal or with C(0x). A mask may follow after a slash, as in V(0x1/0xff).
    type: str
  fwmask:
    description:
      - The bits of the mark to compare. By default all of them.
    type: str
  ipproto:
    description:
      - The IP protocol, V(tcp), V(udp), V(icmp), V(ipv6-icmp), or a number (1-255).
    type: str
  sport:
    description:
      - The source port, or a range such as V(5060-5070). Needs O(ipproto) V(tcp) or V(udp).
    type: str
  dport:
    description:
      - The destination port, or a range of ports. Needs O(ipproto) V(tcp) or V(udp).
    type: str
  uidrange:
    description:
      - The user id of the process that opened the sending socket, or a range such as V(1000-1999).
    type: str
  action:
    description:
      - V(lookup) looks up O(table). V(blackhole) drops the packet, V(unreachable) answers that the network is
        unreachable, V(prohibit) that it is prohibited; these three need a selector.
    type: str
    choices: [lookup, blackhole, unreachable, prohibit]
    default: lookup
  table:
    description:
      - The routing table to look up, a number, or V(main), V(default), V(local).
      - Required with O(action=lookup) and O(state=present).
    type: str
  suppress_prefixlength:
    description:
      - Ignore routes of O(table) whose prefix has this length or a shorter one.
      - V(0) ignores the default route only. At most 32, with IPv6 128.
    type: int
"""

EXAMPLES = r"""
- name: Send traffic from the second address through the second provider
  trueip.l4proxy.policy_rule:
    priority: 1000
    from: 198.18.0.121
    table: 100

- name: Look up a table for marked packets, and reject them if it has no route
  trueip.l4proxy.policy_rule:
    family: "{{ item.0 }}"
    fwmark: 0x1/0xff
    priority: "{{ item.1.priority }}"
    action: "{{ item.1.action }}"
    table: "{{ item.1.table | default(omit) }}"
  loop: "{{ ['ipv4', 'ipv6'] | product([{'priority': 1100, 'action': 'lookup', 'table': 101},
                                        {'priority': 1101, 'action': 'unreachable'}]) }}"

- name: Send DNS and SIP traffic of this host through the fast line
  trueip.l4proxy.policy_rule:
    family: ipv6
    priority: 1200
    iif: lo
    ipproto: udp
    dport: "{{ item }}"
    table: 102
  loop:
    - "53"
    - 5060-5070

- name: Look up main without its default route first, then the table of the tunnel (as wg-quick does)
  trueip.l4proxy.policy_rule:
    family: ipv4
    priority: "{{ item.priority }}"
    table: "{{ item.table }}"
    suppress_prefixlength: "{{ item.suppress | default(omit) }}"
  loop:
    - {priority: 2000, table: main, suppress: 0}
    - {priority: 2001, table: 103}

- name: Keep guest accounts from sending through the uplink
  trueip.l4proxy.policy_rule:
    family: ipv4
    priority: 3000
    uidrange: 5000-5999
    oif: eth0
    action: prohibit

- name: Remove the rule for a former provider
  trueip.l4proxy.policy_rule:
    priority: 1001
    from: 198.18.0.122
    state: absent
"""

RETURN = r"""
changes:
  description: What was changed, or in check mode would be, in order; a sentence each.
  returned: success
  type: list
  elements: str
  sample: ["add ip rule 1000: from 198.18.0.121 lookup 100"]
rule:
  description:
    - The rule afterwards, with the keys of C(rules) in a state document; empty if there is none.
  returned: success
  type: dict
  sample: {family: ipv4, priority: 1000, action: lookup, table: 100, src: 198.18.0.121/32}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trueip.l4proxy.plugins.module_utils import _host_module
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import options

ARGUMENTS = {
    "priority": {"type": "int", "required": True},
    "from": {"type": "str"},
    "to": {"type": "str"},
    "iif": {"type": "str"},
    "oif": {"type": "str"},
    "fwmark": {"type": "str"},
    "fwmask": {"type": "str"},
    "ipproto": {"type": "str"},
    "sport": {"type": "str"},
    "dport": {"type": "str"},
    "uidrange": {"type": "str"},
    "action": {"type": "str", "choices": ["lookup", "blackhole", "unreachable", "prohibit"], "default": "lookup"},
    "table": {"type": "str"},
    "suppress_prefixlength": {"type": "int"},
}


def main() -> None:
    module = AnsibleModule(argument_spec={**_host_module.SINGLE_OBJECT, **ARGUMENTS}, supports_check_mode=True)
    _host_module.ensure_single(module, options.rule, "rule")


if __name__ == "__main__":
    main()
