# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What policy_rule and policy_route have in common."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
attributes:
  check_mode:
    support: full
    details:
      - Without pyroute2 on the host, check mode takes the object for absent and warns.
  diff_mode:
    support: full
  platform:
    support: full
requirements:
  - python3-pyroute2 on the host (0.7.2 or newer)
options:
  state:
    description:
      - V(present) makes the object be there exactly as the options say; one with the same key that differs is changed.
      - V(absent) removes the object with that key, whatever else it is.
    type: str
    choices: [present, absent]
    default: present
  family:
    description:
      - The address family.
      - Required where no address among the options tells it.
    type: str
    choices: [ipv4, ipv6]
  protocol:
    description:
      - The number of the object's owner, in C(ip)'s words its protocol (C(rt_protos)). Only objects of this owner are
        touched; one with the same key and another owner is refused.
      - V(203) is the number of objects made by M(trueip.l4proxy.policy_rule) and M(trueip.l4proxy.policy_route).
        Say V(3) (C(boot)) to manage what C(ip route) has made by hand. What C(ip rule) has made by hand has no owner,
        and has to be removed by hand before this module can have it.
      - V(201) and V(202) are refused, because M(trueip.l4proxy.routing_state) removes what they own and its
        document does not name.
    type: int
    default: 203
notes:
  - The object is in the kernel only, and gone after a reboot. M(trueip.l4proxy.routing_state) stores its document for
    the keeper, which applies it at boot.
"""
