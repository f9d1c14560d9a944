# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that every filter of services shares."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  _input:
    description:
      - The services of the fleet, the value of the inventory-wide variable C(l4proxy_services).
      - Unlike an empty list, none means that the variable is not defined on a host.
    type: list
    elements: dict
    required: true
  hostvars:
    description: The variables of all hosts, as in the magic variable C(hostvars).
    type: dict
    required: true
"""

    VIEW = r"""
options:
  fleet:
    description:
      - >-
        The fleet as seen from one host. A dictionary with C(host) (the name of that host), C(proxies), C(backends) and
        C(inventory) (lists of names), C(removed) (names of hosts to leave out), C(known) (documents that an earlier run
        stored on that host), and C(settings) (lines C(/proc/sys/NAME:VALUE) of that host).
    type: dict
    required: true
"""
