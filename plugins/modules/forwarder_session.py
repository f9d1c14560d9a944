# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: forwarder_session
author: The trueip.l4proxy authors (@trueip)
version_added: 0.2.0
short_description: List the open sessions of a forwarder, and end them
description:
  - Run it on a proxy. It asks the running forwarder, over its admin socket, which sessions are open, and can end some.
  - A session is a TCP connection, or all UDP datagrams between one client address and port and one listen address.
  - A session must match all of O(service), O(backend), O(client) and O(generation) that are set.
options:
  action:
    description:
      - V(info) - list the sessions, and change nothing.
      - V(kill) - end them at once. TCP connections get a reset on both sides. A UDP session is forgotten; the client's
        next datagram begins a new one. At least one of O(service), O(backend), O(client) and O(generation) is required.
    type: str
    choices: [info, kill]
    default: info
  service:
    description: The name of a service.
    type: str
  backend:
    description: The name of a backend as C(l4proxy status) shows it; without a port, all ports of that host.
    type: str
  client:
    description: An address or a network of clients, such as V(203.0.113.7) or V(2001:db8:7::/48).
    type: str
  generation:
    description: The number of a generation that has workers; C(l4proxy status) shows the old ones.
    type: int
  limit:
    description: How many sessions RV(sessions) has at most, from 1 to 100. RV(count) and O(action=kill) are about all.
    type: int
    default: 100
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
    support: none
  platform:
    support: full
seealso:
  - module: trueip.l4proxy.forwarder_backend
"""

EXAMPLES = r"""
# On a proxy.
- name: List the sessions of a network
  trueip.l4proxy.forwarder_session:
    client: 203.0.113.0/24
  register: found

- name: Show how many there are, and whose they are
  ansible.builtin.debug:
    msg: "{{ found.count }} sessions of {{ found.sessions | map(attribute='client') | unique | join(', ') }}"

- name: End all sessions of a client that is not allowed any more
  trueip.l4proxy.forwarder_session:
    action: kill
    client: 2001:db8:ffff::7

- name: End the sessions that a backend still has in one service
  trueip.l4proxy.forwarder_session:
    action: kill
    service: web
    backend: b
"""

RETURN = r"""
count:
  description: The number of sessions that matched, before O(action=kill) ended them.
  returned: success
  type: int
  sample: 2
sessions:
  description:
    - The oldest of these, at most O(limit), with the fields that the log has at the end of a connection or session.
    - Fields of UDP sessions are C(datagrams_to_backend) and C(datagrams_to_client) in addition.
  returned: success
  type: list
  elements: dict
  contains:
    service:
      description: The service.
      type: str
    listener:
      description: The listen address.
      type: str
    client:
      description: The client's address.
      type: str
    client_port:
      description: The client's port.
      type: int
    backend:
      description: The backend; null if there is none yet.
      type: str
    source:
      description: The source address that the backend sees; null until it is connected.
      type: str
    bytes_to_backend:
      description: Bytes that were sent to the backend.
      type: int
    bytes_to_client:
      description: Bytes that were sent to the client.
      type: int
    duration:
      description: Seconds since it began.
      type: float
ended:
  description: The number of sessions that were ended. In check mode nothing is ended; see RV(count).
  returned: with O(action=kill), not in check mode
  type: int
  sample: 2
silent_workers:
  description:
    - The number of workers that did not answer in time, which are too busy or of version 0.1.0. Their sessions are
      neither counted nor ended; the module warns about them.
  returned: success
  type: int
  sample: 0
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import client, kernel_services
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared import paths

SELECTORS = ("service", "backend", "client", "generation")


def act(module: AnsibleModule) -> dict:
    """List the sessions, and end them if the action says so; return the result of the module.

    :raises client.AdminError: the forwarder does not answer, or refuses a selector.
    """
    params = module.params
    selected = {name: params[name] for name in SELECTORS}
    kills = params["action"] == "kill"
    found = client.ask(params["socket"], "sessions", limit=params["limit"], **selected)
    result = {
        "changed": kills and found["count"] > 0,
        **{name: found[name] for name in ("count", "sessions", "silent_workers")},
    }
    for line in kernel_services.pointers(found.get("in_kernel", {}), "-D" if kills else "-L"):
        module.warn(line)
    if kills and not module.check_mode:
        done = client.ask(params["socket"], "kill", **selected)
        result.update(changed=done["ended"] > 0, ended=done["ended"], silent_workers=done["silent_workers"])
    return result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "choices": ["info", "kill"], "default": "info"},
            "service": {"type": "str"},
            "backend": {"type": "str"},
            "client": {"type": "str"},
            "generation": {"type": "int"},
            "limit": {"type": "int", "default": 100},
            "socket": {"type": "path", "default": f"{paths.RUNTIME_DIRECTORY}/admin.sock"},
        },
        required_if=[("action", "kill", SELECTORS, True)],
        supports_check_mode=True,
    )
    try:
        result = act(module)
    except client.AdminError as error:
        module.fail_json(msg=str(error))
    if result["silent_workers"]:
        module.warn(f"{result['silent_workers']} workers did not answer; their sessions are neither counted nor ended")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
