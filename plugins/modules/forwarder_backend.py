# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: forwarder_backend
author: The trueip.l4proxy authors (@trueip)
version_added: 0.1.0
short_description: Take a backend out of the rotation of a forwarder, and put it back
description:
  - Run it on a proxy. It tells the running forwarder, over its admin socket, whether a backend gets new connections.
  - Existing connections continue in every state. With O(wait), the module returns when none is left; with O(force), it
    ends those that are left after O(timeout).
  - The forwarder keeps the state across reloads, restarts, stops, crashes and reboots, until its config no longer
    contains the backend. If it cannot save the state on the disk, the module warns.
options:
  backend:
    description:
      - The name of the backend as C(l4proxy status) shows it. For hosts of the inventory, it is the inventory name.
      - If a service has a host at several ports, they are shown as C(host:port); the host's name means all of them.
    type: str
    required: true
  service:
    description: The name of the service. By default, all services that have the backend.
    type: str
  state:
    description:
      - V(ready) - the backend gets new connections while it is healthy. Fails with RV(reason=disabled) if the inventory
        has C(enabled=false) for the backend in all of these services, and removes what an operator has set before.
      - V(drain) - the backend gets no new connections.
      - V(maintenance) - like V(drain), but shown as maintenance.
    type: str
    choices: [ready, drain, maintenance]
    default: ready
  wait:
    description:
      - With O(state=drain) and O(state=maintenance), wait until the backend has no connections.
      - With O(state=ready), wait until the health checks of the forwarder report it as up.
      - Ignored in check mode.
    type: bool
    default: false
  force:
    description:
      - With O(state=drain) and O(state=maintenance), wait for O(timeout) seconds, and then end the connections that are
        left (TCP with a reset) instead of failing.
      - In check mode nothing is ended; the result is changed if there are connections, which may end by themselves.
    type: bool
    default: false
  timeout:
    description: Seconds to wait before the module fails, or ends connections with O(force).
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
# On a proxy. The playbook trueip.l4proxy.rolling_update does it on all proxies, for one backend after the other.
- name: Drain a backend, and wait until it has no connections
  trueip.l4proxy.forwarder_backend:
    backend: b
    state: drain
    wait: true
    timeout: 120

- name: Take it out for maintenance, and end the connections that are left after two minutes
  trueip.l4proxy.forwarder_backend:
    backend: b
    state: maintenance
    force: true
    timeout: 120

- name: Put the backend back into rotation
  trueip.l4proxy.forwarder_backend:
    backend: b
    state: ready
"""

RETURN = r"""
services:
  description:
    - The services that have the backend, each with the state before and after, and the number of connections.
    - If a service has the backend at several ports, each has an entry C(service host:port).
    - The number is null if the kernel forwards the service, and the keeper has not counted its connections.
  returned: success
  type: dict
  sample: {"web": {"before": "ready", "after": "draining", "connections": 0}}
ended:
  description: The number of connections that O(force) has ended.
  returned: with O(force), not in check mode
  type: int
  sample: 3
reason:
  description:
    - Why the module failed, for conditions in plays.
    - V(unknown_backend) if no service of this forwarder has the backend, V(disabled) if the inventory has
      C(enabled=false) for it, V(other) in all other cases.
  returned: failure
  type: str
  sample: unknown_backend
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admin import client
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config import backend_names
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared import paths

SHOWN = {"ready": "ready", "drain": "draining", "maintenance": "maintenance"}


def lines(states: dict) -> str:
    """The state of the backend in each service as text for a diff."""
    return "".join(f"{service}: {state}\n" for service, state in sorted(states.items()))


def targets(statuses: dict, state: str) -> dict:
    """Return the state that the backend is to have in each service: what the config disables cannot be ready."""
    off = {name for name, status in statuses.items() if state == "ready" and not status.get("enabled", True)}
    return {name: "disabled" if name in off else SHOWN[state] for name in statuses}


def act(module: AnsibleModule) -> dict:
    """Set the state of the backend; return the result of the module.

    :raises client.AdminError: the forwarder does not answer, or does not know the backend.
    """
    params = module.params
    path, backend, service = params["socket"], params["backend"], params["service"]
    statuses = client.backends(client.ask(path, "status")["status"], backend, service)
    before = {name: status["admin"] for name, status in statuses.items()}
    after = targets(statuses, params["state"])
    changed = before != after
    refused = set(after.values()) == {"disabled"}
    if refused and module.check_mode:
        raise client.DisabledBackend(backend_names.disabled(backend, statuses))
    force = params["force"] and params["state"] != "ready"
    if (changed or refused) and not module.check_mode:
        answer = client.ask(path, params["state"], backend=backend, service=service)
        if "not_saved" in answer:
            module.warn(f"not saved, and lost at a stop or reboot: {answer['not_saved']}")
    result = {
        "changed": changed
        or (force and module.check_mode and any(status["active"] != 0 for status in statuses.values())),
        "diff": {"before": lines(before), "after": lines(after)},
        "services": {
            name: {"before": before[name], "after": after[name], "connections": status["active"]}
            for name, status in statuses.items()
        },
    }
    if (params["wait"] or force) and not module.check_mode:
        wait(params, result)
    return result


def wait(params: dict, result: dict) -> None:
    """Wait as option wait says, and update the connections in ``result``.

    :raises client.AdminError: the timeout expired.
    """
    path, backend, service, timeout = params["socket"], params["backend"], params["service"], params["timeout"]
    if params["state"] == "ready":
        not_up = client.wait_until_up(path, backend, service, timeout)
        if not_up:
            raise client.AdminError(f"backend {backend} is not up after {timeout:g} s: {not_up}")
    else:
        left = client.wait_until_empty(path, backend, service, timeout)
        if params["force"]:
            result["ended"], left = client.end_connections(path, backend, service) if left else (0, 0)
            result["changed"] |= bool(result["ended"])
        if left:
            raise client.AdminError(f"backend {backend} still has {client.connections(left)} after {timeout:g} s")
    for name, status in client.backends(client.ask(path, "status")["status"], backend, service).items():
        result["services"][name]["connections"] = status["active"]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "backend": {"type": "str", "required": True},
            "service": {"type": "str"},
            "state": {"type": "str", "choices": ["ready", "drain", "maintenance"], "default": "ready"},
            "wait": {"type": "bool", "default": False},
            "force": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 300},
            "socket": {"type": "path", "default": f"{paths.RUNTIME_DIRECTORY}/admin.sock"},
        },
        supports_check_mode=True,
    )
    try:
        result = act(module)
    except client.AdminError as error:
        module.fail_json(msg=str(error), reason=error.reason)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
