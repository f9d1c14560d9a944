# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: forwarder_backend
author: The trueip.l4proxy authors (@trueip)
version_added: 0.1.0
short_description: Take a backend out of a forwarder's rotation, and put it back
description:
  - Run on a proxy host. Tell the running forwarder, over its admin socket, whether a backend may have new connections.
  - Connections that are there go on in every state; with O(wait) the module returns when there are none left.
  - The forwarder keeps the state over reloads, until it is restarted or its config no longer has the backend.
options:
  backend:
    description:
      - Name of the backend, as C(l4proxy status) shows it; for a host of the inventory that is its name there.
      - A host that a service has at several ports is shown as C(host:port); its name means all of them.
    type: str
    required: true
  service:
    description: Name of the service. Without it the state holds in every service that has the backend.
    type: str
  state:
    description:
      - V(ready) - it has new connections, as far as its health allows.
      - V(drain) - it has no new connections.
      - V(maintenance) - the same, and shown as such.
    type: str
    choices: [ready, drain, maintenance]
    default: ready
  wait:
    description:
      - With O(state=drain) and O(state=maintenance), wait until the backend has no connections.
      - With O(state=ready), wait until the forwarder's health checks find it up.
      - Does nothing in check mode.
    type: bool
    default: false
  timeout:
    description: How many seconds to wait before the module fails.
    type: float
    default: 300
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
"""

EXAMPLES = r"""
# On a proxy host. For all proxies and every backend in turn there is the playbook trueip.l4proxy.rolling_update.
- name: Give a backend no new connections, and wait until it has none
  trueip.l4proxy.forwarder_backend:
    backend: b
    state: drain
    wait: true
    timeout: 120

- name: Put it back
  trueip.l4proxy.forwarder_backend:
    backend: b
    state: ready
"""

RETURN = r"""
services:
  description:
    - The services that have the backend, each with its state before and after and the connections it has.
    - Where a service has it at several ports, one entry each, C(service host:port).
  returned: success
  type: dict
  sample: {"web": {"before": "ready", "after": "draining", "connections": 0}}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import client

SHOWN = {"ready": "ready", "drain": "draining", "maintenance": "maintenance"}


def lines(found: dict, state: str | None = None) -> str:
    """Spell {service: backend's status} for a diff, as it is or as it will be."""
    return "".join(f"{service}: {state or one['admin']}\n" for service, one in sorted(found.items()))


def act(module: AnsibleModule) -> dict:
    """Bring the backend to the state that is wanted; returns the module's result.

    :raises client.AdminError: the forwarder cannot be asked, or does not know the backend.
    """
    params = module.params
    path, backend, service, wanted = params["socket"], params["backend"], params["service"], SHOWN[params["state"]]
    found = client.backends(client.ask(path, "status")["status"], backend, service)
    changed = any(one["admin"] != wanted for one in found.values())
    if changed and not module.check_mode:
        client.ask(path, params["state"], backend=backend, service=service)
    result = {
        "changed": changed,
        "diff": {"before": lines(found), "after": lines(found, wanted)},
        "services": {
            name: {"before": one["admin"], "after": wanted, "connections": one["active"]} for name, one in found.items()
        },
    }
    if params["wait"] and not module.check_mode:
        wait(params, result)
    return result


def wait(params: dict, result: dict) -> None:
    """Wait for what O(wait) names, and renew the connections in ``result``.

    :raises client.AdminError: the time is over.
    """
    path, backend, service, timeout = params["socket"], params["backend"], params["service"], params["timeout"]
    if params["state"] == "ready":
        not_up = client.wait_until_up(path, backend, service, timeout)
        if not_up:
            raise client.AdminError(f"backend {backend} is not up after {timeout:g} s: {not_up}")
    else:
        left = client.wait_until_empty(path, backend, service, timeout)
        if left:
            raise client.AdminError(f"backend {backend} still has {client.connections(left)} after {timeout:g} s")
    for name, one in client.backends(client.ask(path, "status")["status"], backend, service).items():
        result["services"][name]["connections"] = one["active"]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "backend": {"type": "str", "required": True},
            "service": {"type": "str"},
            "state": {"type": "str", "choices": ["ready", "drain", "maintenance"], "default": "ready"},
            "wait": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 300},
            "socket": {"type": "path", "default": "/run/l4proxy/admin.sock"},
        },
        supports_check_mode=True,
    )
    try:
        result = act(module)
    except client.AdminError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
