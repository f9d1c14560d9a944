# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vrrp_info
author: The trueip.l4proxy authors (@trueip)
version_added: 0.2.0
short_description: Find out who uses VRRP on a host's links, and which virtual addresses the host has
description:
  - Listens for VRRP advertisements, to the multicast group of each family and to the host itself, and reports those of
    other routers that have the vrid or an address of one of O(virtual_ips).
  - A router that advertises less often than every O(seconds) seconds is not heard, nor one that a packet filter hides.
  - Sends nothing but the membership reports of the two groups, and changes nothing.
options:
  virtual_ips:
    description: The virtual IPs of this host, as P(trueip.l4proxy.virtual_ips#filter) derives them.
    type: list
    elements: dict
    required: true
  seconds:
    description: How long to listen, 0 to 60. With V(0) only the addresses of the host are read.
    type: float
    default: 3.2
  wait:
    description:
      - Seconds, 0 to 60, to wait until each virtual IP is on this host, or another router advertises it. Then
        O(seconds) begin.
    type: float
    default: 0
extends_documentation_fragment:
  - trueip.l4proxy.attributes
  - trueip.l4proxy.attributes.info
"""

EXAMPLES = r"""
- name: Listen for routers that use the vrids of this proxy
  trueip.l4proxy.vrrp_info:
    virtual_ips: "{{ (l4proxy_services | trueip.l4proxy.virtual_ips(fleet, hostvars)).virtual_ips }}"
  register: vrrp
  vars:
    fleet:
      host: "{{ inventory_hostname }}"
      inventory: "{{ groups.all }}"
      proxies: "{{ groups.proxies }}"
      backends: "{{ groups.backends }}"

- name: Print who else uses VRRP on these links
  ansible.builtin.debug:
    msg: "{{ vrrp.adverts | map(attribute='source') }}"
"""

RETURN = r"""
adverts:
  description: The advertisements that were heard, one for each router, interface and vrid.
  returned: success
  type: list
  elements: dict
  contains:
    interface:
      description: Where it arrived.
      type: str
    family:
      description: The address family.
      type: str
      choices: [ipv4, ipv6]
    source:
      description: The router that sent it.
      type: str
    vrid:
      description: Its virtual router id.
      type: int
    priority:
      description: Its priority; 0 if it gives the addresses up.
      type: int
    version:
      description: 2 or 3.
      type: int
    addresses:
      description: Its virtual addresses.
      type: list
      elements: str
clashes:
  description: A sentence for each advertisement of another router that has a vrid or an address of O(virtual_ips).
  returned: success
  type: list
  elements: str
held:
  description: The addresses of O(virtual_ips) that this host has now.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trueip.l4proxy.plugins.module_utils import _vrrp

ARGUMENTS = {
    "virtual_ips": {"type": "list", "elements": "dict", "required": True},
    "seconds": {"type": "float", "default": 3.2},
    "wait": {"type": "float", "default": 0},
}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    ours = module.params["virtual_ips"]
    for option in ("seconds", "wait"):
        if not 0 <= module.params[option] <= 60:
            module.fail_json(msg=f"{option}: {module.params[option]:g} is not a number from 0 to 60")
    try:
        _vrrp.listen(_vrrp.links_of(ours), module.params["wait"], lambda heard: _vrrp.have_holders(ours, heard))
        adverts = _vrrp.listen(_vrrp.links_of(ours), module.params["seconds"])
    except OSError as error:
        links = ", ".join(sorted({interface for interface, _family in _vrrp.links_of(ours)}))
        module.fail_json(msg=f"{error.strerror}: VRRP on {links} needs these interfaces, and root or CAP_NET_RAW")
    addresses = [address for one in ours for family in one["families"] for address in family["addresses"]]
    module.exit_json(
        changed=False,
        adverts=[advert.to_dict() for advert in adverts],
        clashes=list(_vrrp.clashes(ours, adverts)),
        held=[address for address in addresses if _vrrp.holds(address)],
    )


if __name__ == "__main__":
    main()
