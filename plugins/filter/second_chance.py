# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: second_chance
author: The trueip.l4proxy authors (@trueip)
version_added: 0.2.0
short_description: Plan how the streams of a proxy survive the move of its virtual IPs
description:
  - The playbooks C(rolling_update_proxies) and C(failover) use it. You need it only in playbooks of your own.
positional: _input, leaving, links, services, seconds, announced
options:
  _input:
    description: The virtual IPs of the proxy O(leaving), as P(trueip.l4proxy.virtual_ips#filter) returns them.
    type: list
    elements: dict
    required: true
  leaving:
    description: The name of the proxy that the virtual IPs leave.
    type: str
    required: true
  links:
    description: What C(ip -json address) prints on each proxy, by its name.
    type: dict
    required: true
  services:
    description: The services that C(l4proxy status --json) prints on the proxy O(leaving).
    type: list
    elements: dict
    required: true
  seconds:
    description: Seconds after which all of it expires.
    type: int
    required: true
  announced:
    description: Addresses that all proxies have on C(lo), because each announces them.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Show which proxies hold the virtual IPs
  ansible.builtin.debug:
    msg: "{{ (virtual_ips | trueip.l4proxy.second_chance('a', links, services, 300)).holders }}"
  vars:
    links: {a: [{ifname: eth0, addr_info: [{local: 198.18.0.100}]}]}
    services: [{name: web, protocol: tcp, listen: ["0.0.0.0:80"]}]
    virtual_ips:
      - name: web
        families:
          - family: ipv4
            interface: eth0
            source: 198.18.0.11
            peers: {}
            addresses: [198.18.0.100]
"""

RETURN = r"""
_value:
  description: Who holds the virtual IPs, and what to run on the proxies.
  type: dict
  contains:
    holders:
      description: Lists of the proxies that have it, by name of the virtual IP.
      type: dict
    held:
      description: Names of the virtual IPs that the proxy has.
      type: list
      elements: str
    addresses:
      description: The addresses of these.
      type: list
      elements: str
    keep:
      description: Commands for C(ip -batch) on the proxy that they leave.
      type: str
    quiet:
      description: Rules for nft on the proxy that they leave.
      type: str
    others:
      description: Rules for nft on the other proxies, by name.
      type: dict
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.plugin_utils import _second_chance
from ansible_collections.trueip.l4proxy.plugins.plugin_utils._variables import plain


def second_chance(
    virtual_ips: Sequence[Any],
    leaving: str,
    links: Mapping[str, Any],
    services: Sequence[Any],
    seconds: int,
    announced: Sequence[str] = (),
) -> dict[str, Any]:
    """Plan a planned move of virtual IPs."""
    return _second_chance.plan(
        plain(virtual_ips), str(leaving), plain(links), plain(services), int(seconds), plain(announced)
    )


class FilterModule:
    """The filter plugin of this file."""

    def filters(self) -> dict[str, Any]:
        """Return the filter by name."""
        return {"second_chance": second_chance}
