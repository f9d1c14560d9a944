# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module ``policy_route``: one route of one table, as in ip-route(8)."""

from __future__ import annotations

DOCUMENTATION = r"""
module: policy_route
short_description: Add or remove one route of a routing table (ip route)
version_added: 0.1.0
author:
  - The trueip.l4proxy authors (@trueip)
description:
  - Adds, changes or removes one route for IPv4 or IPv6, in any table. M(trueip.l4proxy.policy_rule) selects the packets
    that look up a table.
  - A route is identified by its O(family), O(table), O(dst), O(metric) and O(protocol). If anything else differs, it is
    replaced in one step.
  - Routes of others are never touched. Tables that contain routes of others are refused, except V(main) and V(default).
    A route that cannot be applied is refused before anything is changed.
extends_documentation_fragment:
  - trueip.l4proxy.attributes
  - trueip.l4proxy.single_object
options:
  table:
    description:
      - The routing table, a number, or V(main) or V(default). V(local) is refused, because it belongs to the kernel.
      - Required, so that no route gets into V(main) by accident.
    type: str
    required: true
  dst:
    description:
      - The destination; an address, a prefix, or V(default).
    type: str
    required: true
  type:
    description:
      - V(unicast) forwards the packet. V(local) delivers it to this host. V(blackhole) drops it, V(unreachable) answers
        that the host is unreachable, V(prohibit) that it is prohibited.
    type: str
    choices: [unicast, local, blackhole, unreachable, prohibit]
    default: unicast
  via:
    description:
      - The next hop. It must be on-link, unless O(onlink=true).
    type: str
  dev:
    description:
      - The interface to send through; it must be up. By default the one that leads to O(via); V(lo) with O(type=local).
    type: str
  src:
    description:
      - The source address of packets that the host itself sends by this route. The host must have it.
    type: str
  metric:
    description:
      - Of several routes to one destination, the one with the lowest metric is used. 0 to 4294967295.
      - The default is the kernel's, 0 for IPv4 and 1024 for IPv6.
    type: int
  scope:
    description:
      - How far away the destination is. IPv6 has V(global) only.
      - The default is that of C(ip route) - V(host) for O(type=local), V(link) for a V(unicast) route without O(via),
        else V(global).
    type: str
    choices: [global, link, host]
  onlink:
    description:
      - Treat O(via) as a neighbour on O(dev), even if no route says so.
    type: bool
    default: false
  mtu:
    description:
      - The MTU of the path in bytes, 68 to 65520, for IPv6 at least 1280.
    type: int
  advmss:
    description:
      - The TCP maximum segment size to advertise, in bytes, 1 to 65495.
    type: int
"""

EXAMPLES = r"""
- name: Send everything in table 100 through the second provider, from the address that it assigned
  trueip.l4proxy.policy_route:
    table: 100
    dst: default
    via: 198.18.0.1
    src: 198.18.0.21

- name: Do the same for IPv6, with a smaller MTU
  trueip.l4proxy.policy_route:
    table: 100
    dst: default
    via: 2001:db8::1
    dev: eth0
    mtu: 1400
    advmss: 1340

- name: Reject packets when the link of that route is down
  trueip.l4proxy.policy_route:
    family: ipv4
    table: 100
    dst: default
    type: unreachable
    metric: 4000

- name: Use a gateway outside of all subnets of the host, as some providers require
  trueip.l4proxy.policy_route:
    table: 101
    dst: 10.20.0.0/16
    via: 198.51.100.1
    dev: eth0
    onlink: true

- name: Deliver all packets that look up table 102 to this host (transparent proxying)
  trueip.l4proxy.policy_route:
    family: "{{ item }}"
    table: 102
    dst: default
    type: local
  loop: [ipv4, ipv6]

- name: Route a remote network through another router, in the main table
  trueip.l4proxy.policy_route:
    table: main
    dst: 10.30.0.0/16
    via: 198.18.0.1

- name: Remove a route that is no longer needed
  trueip.l4proxy.policy_route:
    table: main
    dst: 10.31.0.0/16
    state: absent
"""

RETURN = r"""
changes:
  description: What was changed, or in check mode would be, in order; a sentence each.
  returned: success
  type: list
  elements: str
  sample: ["add ip route default via 198.18.0.1 dev eth0 table 100 src 198.18.0.21"]
route:
  description:
    - The route afterwards, with its interface and the keys of C(routes) in a state document; empty if there is none.
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
