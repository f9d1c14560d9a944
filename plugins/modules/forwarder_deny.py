# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: forwarder_deny
author: The trueip.l4proxy authors (@trueip)
version_added: 0.2.0
short_description: Ban clients at a forwarder, or lift a ban
description:
  - Run it on each proxy that is to refuse these clients; proxies do not tell each other. It asks the running forwarder
    over its admin socket.
  - New connections of a banned client are refused, and its open sessions are ended at once.
  - A ban outlives a reload, restart and upgrade of the forwarder, and a reboot.
options:
  network:
    description: An address or a network of clients, such as V(203.0.113.7) or V(2001:db8:7::/64).
    type: str
    required: true
  service:
    description: The name of a service. Without it, the ban is for all services, and another one than that of a service.
    type: str
  state:
    description:
      - V(present) - ban the network. The module fails if the network contains an address that can never be banned, as
        those of proxies and backends.
      - V(absent) - lift this ban. Other bans of the network, or of a part of it, remain; see RV(remaining).
    type: str
    choices: [present, absent]
    default: present
  duration:
    description: How long, such as V(90s), V(15m), V(1h) or V(7d). Without it, the ban has no end.
    type: str
  renew:
    description:
      - Whether a ban that exists and has an end gets the end that O(duration) says from now.
      - Otherwise it keeps its end, and nothing is changed.
    type: bool
    default: false
  reason:
    description: A text for the log and for C(l4proxy denied), at most 200 characters.
    type: str
    default: ""
  socket:
    description: The forwarder's admin socket.
    type: path
    default: /run/l4proxy/admin.sock
extends_documentation_fragment:
  - trueip.l4proxy.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  platform:
    support: full
seealso:
  - module: trueip.l4proxy.forwarder_session
"""

EXAMPLES = r"""
# On every proxy.
- name: Ban a network for a day
  trueip.l4proxy.forwarder_deny:
    network: 203.0.113.0/24
    duration: 1d
    reason: scans of port 22

- name: Ban a client at one service, until the ban is lifted
  trueip.l4proxy.forwarder_deny:
    network: 2001:db8:ffff::7
    service: web

- name: Lift the first ban
  trueip.l4proxy.forwarder_deny:
    network: 203.0.113.0/24
    state: absent
"""

RETURN = r"""
network:
  description: The network as the forwarder has it; an IPv4-mapped IPv6 address is an IPv4 address.
  returned: success
  type: str
  sample: 203.0.113.0/24
expires:
  description: When the ban ends, in UTC; null if it has no end.
  returned: with O(state=present)
  type: str
  sample: "2026-01-31T12:00:00Z"
remaining:
  description: Other bans, at most 20, that refuse a part of the network; each as network and service (null for all).
  returned: with O(state=absent)
  type: list
  elements: list
  sample: [["203.0.113.7", "web"]]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import bans, client
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared import paths


def line(network: str, service: str | None, ban: dict | None) -> str:
    """The ban as a line of a diff; an empty text for none."""
    if ban is None:
        return ""
    until = f"until {ban['expires']}" if ban["expires"] else "without an end"
    return f"{network} at {service or 'all services'} {until} {ban['reason']}".rstrip() + "\n"


def act(module: AnsibleModule) -> dict:
    """Ban or allow the network; return the result of the module.

    :raises client.AdminError: the forwarder does not answer, or refuses the ban.
    :raises ValueError: the duration is wrong.
    """
    params = module.params
    request = {"network": params["network"], "service": params["service"], "check": module.check_mode or None}
    if params["state"] == "present":
        seconds = bans.parse_duration(params["duration"]) if params["duration"] else None
        more = {"seconds": seconds, "renew": params["renew"], "reason": params["reason"]}
        answer = client.ask(params["socket"], "deny", **request, **more)
    else:
        answer = client.ask(params["socket"], "allow", **request)
    if "not_saved" in answer:
        module.warn(f"not saved, and lost at a stop or reboot: {answer['not_saved']}")
    after = answer if params["state"] == "present" else None
    texts = [line(answer["network"], params["service"], ban) for ban in (answer["before"], after)]
    shown = {name: answer[name] for name in ("network", "expires", "remaining") if name in answer}
    return {"changed": answer["changed"], "diff": dict(zip(("before", "after"), texts)), **shown}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "network": {"type": "str", "required": True},
            "service": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "duration": {"type": "str"},
            "renew": {"type": "bool", "default": False},
            "reason": {"type": "str", "default": ""},
            "socket": {"type": "path", "default": f"{paths.RUNTIME_DIRECTORY}/admin.sock"},
        },
        supports_check_mode=True,
    )
    try:
        result = act(module)
    except (client.AdminError, ValueError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
