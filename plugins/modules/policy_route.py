# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module ``policy_route``: one route of one table, as ip-route(8) has them."""

from __future__ import annotations

DOCUMENTATION = r"""
module: policy_route
short_description: Add or remove one route of a routing table (ip route)
version_added: 0.1.0
author:
  - The trueip.l4proxy authors (@trueip)
description:
  - Adds, changes or removes one route of IPv4 or IPv6, in any table; M(trueip.l4proxy.policy_rule) says which packets
    ask that table.
  - A route is found by its O(family), O(table), O(dst) and O(metric), and its O(protocol). Applied with anything else
    different, it is replaced in one step.
  - Routes of others are never touched, and a table other than V(main) and V(default) in which others have routes is
    refused. What cannot be applied is refused before anything is changed.
extends_documentation_fragment:
  - trueip.l4proxy.attributes
  - trueip.l4proxy.single_object
options:
  table:
    description:
      - The routing table, by number, or V(main) or V(default). The table V(local) is the kernel's and refused.
      - Always named, so that nothing gets into V(main) by accident.
    type: str
    required: true
  dst:
    description:
      - The destination, as an address or a prefix, or V(default).
    type: str
    required: true
  type:
    description:
      - V(unicast) sends on. V(local) takes the packet as the host's own. V(blackhole) drops it, V(unreachable) answers
        that the host is unreachable, V(prohibit) that it is forbidden.
    type: str
    choices: [unicast, local, blackhole, unreachable, prohibit]
    default: unicast
  via:
    description:
      - The next hop. It has to be on-link, unless O(onlink=true).
    type: str
  dev:
    description:
      - The interface to send by, which has to be up. Found by O(via) where it is not given; V(lo) with O(type=local).
    type: str
  src:
    description:
      - The source address of what the host itself sends by this route. The host has to have it.
    type: str
  metric:
    description:
      - Of several routes to one destination, that with the lowest metric is used. 0 to 4294967295.
      - The default is that of the kernel, 0 with IPv4 and 1024 with IPv6.
    type: int
  scope:
    description:
      - How far away the destination is. IPv6 has no scopes but V(global).
      - The default is that of C(ip route), V(host) for O(type=local), V(link) for a V(unicast) route without O(via),
        else V(global).
    type: str
    choices: [global, link, host]
  onlink:
    description:
      - Takes O(via) for a neighbour on O(dev) although no route says so.
    type: bool
    default: false
  mtu:
    description:
      - The MTU of the path in bytes, 68 to 65520, with IPv6 1280 or more.
    type: int
  advmss:
    description:
      - The TCP segment size to announce, in bytes, 1 to 65495.
    type: int
"""

EXAMPLES = r"""
- name: Table 100 sends everything to the second provider, from the address that it gave
  trueip.l4proxy.policy_route:
    table: 100
    dst: default
    via: 198.18.0.1
    src: 198.18.0.21

- name: The same for IPv6, with a smaller MTU
  trueip.l4proxy.policy_route:
    table: 100
    dst: default
    via: 2001:db8::1
    dev: eth0
    mtu: 1400
    advmss: 1340

- name: When that route goes with its link, nothing is sent elsewhere
  trueip.l4proxy.policy_route:
    family: ipv4
    table: 100
    dst: default
    type: unreachable
    metric: 4000

- name: A gateway outside of every subnet of the host, as some hosters have it
  trueip.l4proxy.policy_route:
    table: 101
    dst: 10.20.0.0/16
    via: 198.51.100.1
    dev: eth0
    onlink: true

- name: Everything that asks table 102 is for this host (transparent proxying)
  trueip.l4proxy.policy_route:
    family: "{{ item }}"
    table: 102
    dst: default
    type: local
  loop: [ipv4, ipv6]

- name: The warehouse is behind another router (in the main table)
  trueip.l4proxy.policy_route:
    table: main
    dst: 10.30.0.0/16
    via: 198.18.0.1

- name: What is not used any more is gone
  trueip.l4proxy.policy_route:
    table: main
    dst: 10.31.0.0/16
    state: absent
"""

RETURN = r"""
changes:
  description: What was changed, or in check mode would be, in order; one sentence each.
  returned: success
  type: list
  elements: str
  sample: ["add ip route default via 198.18.0.1 dev eth0 table 100 src 198.18.0.21"]
route:
  description:
    - The route as it is afterwards, in the keys of a state document's C(routes), with its interface; empty when there
      is none.
  returned: success
  type: dict
  sample: {family: ipv4, table: 100, dst: default, type: unicast, via: 198.18.0.1, dev: eth0, src: 198.18.0.21}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trueip.l4proxy.plugins.module_utils import _host_module
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import options

ARGUMENTS = {
    "table": {"type": "str", "required": True},
    "dst": {"type": "str", "required": True},
    "type": {
        "type": "str",
        "choices": ["unicast", "local", "blackhole", "unreachable", "prohibit"],
        "default": "unicast",
    },
    "via": {"type": "str"},
    "dev": {"type": "str"},
    "src": {"type": "str"},
    "metric": {"type": "int"},
    "scope": {"type": "str", "choices": ["global", "link", "host"]},
    "onlink": {"type": "bool", "default": False},
    "mtu": {"type": "int"},
    "advmss": {"type": "int"},
}


def main() -> None:
    module = AnsibleModule(argument_spec={**_host_module.SINGLE_OBJECT, **ARGUMENTS}, supports_check_mode=True)
    _host_module.ensure_single(module, options.route, "route")


if __name__ == "__main__":
    main()
