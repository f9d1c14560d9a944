# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options that policy_rule and policy_route share."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
attributes:
  check_mode:
    support: full
    details:
      - Without pyroute2 on the host, check mode warns and assumes that the object is absent.
  diff_mode:
    support: full
  platform:
    support: full
requirements:
  - python3-pyroute2 on the host (0.7.2 or newer)
options:
  state:
    description:
      - V(present) adds the object, or changes the existing one with the same key to what the options say.
      - V(absent) removes the object with that key, whatever its other values are.
    type: str
    choices: [present, absent]
    default: present
  family:
    description:
      - The address family.
      - Required if no option contains an address that shows it.
    type: str
    choices: [ipv4, ipv6]
  protocol:
    description:
      - The number of the object's owner, which C(ip) calls its protocol (C(rt_protos)). Only objects of this owner are
        touched. An object with the same key and another owner is refused.
      - V(203) is the owner of objects created by M(trueip.l4proxy.policy_rule) and M(trueip.l4proxy.policy_route).
        Set V(3) (C(boot)) to manage routes that were added manually with C(ip route). Rules that were added manually
        with C(ip rule) have no owner; delete them first to manage them with this module.
      - V(201) and V(202) are refused, because M(trueip.l4proxy.routing_state) removes objects of these owners that its
        document does not list.
    type: int
    default: 203
notes:
  - The object is not restored after a reboot. M(trueip.l4proxy.routing_state) stores its document for the keeper,
    which applies it at boot.
"""
