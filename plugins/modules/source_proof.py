# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: source_proof
author: The trueip.l4proxy authors (@trueip)
version_added: 0.2.0
short_description: Prove which source address a backend sees
description:
  - A handshake that succeeds does not show that the backend sees the client's address, because source NAT on the way
    hides it and translates the answers back. Only the backend can tell.
  - With O(role=send), run on a proxy, send samples to backends in the background, from a source address that the host
    does not own, as the forwarder does for its clients. With O(role=watch), run on a backend meanwhile, say which
    source address they have there. Rules by the owner of a socket take them for the forwarder's own, where it runs.
  - No server notices the samples. Over TCP they are a SYN whose handshake is never completed, over UDP a datagram with
    a wrong checksum, which the kernel of the backend drops.
  - What a sample over UDP shows is the way to the backend, but not rules of input NAT on the backend itself.
  - Sends packets, but changes nothing on any host. In check mode nothing is sent or looked for.
options:
  role:
    description: Which end this host is.
    type: str
    choices: [send, watch]
    required: true
  targets:
    description: With O(role=send), what to send to.
    type: list
    elements: dict
    default: []
    suboptions:
      protocol:
        description: The protocol of the service.
        type: str
        choices: [tcp, udp]
        default: tcp
      address:
        description: The IPv4 or IPv6 address of the backend.
        type: str
        required: true
      port:
        description: The port of the backend, 1 to 65535.
        type: int
        required: true
      source:
        description: The address to come from, of the same family as O(targets[].address).
        type: str
        required: true
      name:
        description: A name for messages.
        type: str
        default: ""
      host:
        description: The name of the backend in the inventory, handed on in RV(samples[].host).
        type: str
        default: ""
  seconds:
    description: With O(role=send), how long to go on sending, 1 to 600; twice a second for each target.
    type: float
    default: 20
  samples:
    description: With O(role=watch), those of RV(samples) that were sent to this host.
    type: list
    elements: dict
    default: []
  timeout:
    description: With O(role=watch), seconds to look for the samples.
    type: float
    default: 5
extends_documentation_fragment:
  - trueip.l4proxy.attributes.info
"""

EXAMPLES = r"""
- name: Send samples to a web server as a client of the documentation range
  trueip.l4proxy.source_proof:
    role: send
    seconds: 10
    targets:
      - {name: web, address: 198.18.0.21, port: 8080, source: 198.51.100.11}
      - {name: web, address: "2001:db8::21", port: 8080, source: "2001:db8:ffff::11"}
  register: sent

- name: Ask the backend what it sees
  trueip.l4proxy.source_proof:
    role: watch
    samples: "{{ sent.samples }}"
  delegate_to: b
"""

RETURN = r"""
samples:
  description: What is being sent, a sample for each of O(targets).
  returned: O(role=send)
  type: list
  elements: dict
  contains:
    name:
      description: As in O(targets[].name).
      type: str
    host:
      description: As in O(targets[].host).
      type: str
    protocol:
      description: As in O(targets[].protocol).
      type: str
    address:
      description: As in O(targets[].address).
      type: str
    port:
      description: As in O(targets[].port).
      type: int
    source:
      description: As in O(targets[].source).
      type: str
    source_port:
      description: The port it comes from.
      type: int
    token:
      description: By what it is recognized, whatever was done to its addresses and ports.
      type: int
results:
  description: One result a sample, in the order of O(samples).
  returned: O(role=watch)
  type: list
  elements: dict
  contains:
    seen:
      description: The source address that the sample has on this host; empty where none came in.
      type: str
    hidden:
      description: Whether that is another than was sent.
      type: bool
    sentence:
      description: What that means.
      type: str
"""

import ipaddress

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trueip.l4proxy.plugins.module_utils import _source_proof as proof
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts import forwarder

TARGET_SPEC = {
    "protocol": {"type": "str", "choices": ["tcp", "udp"], "default": "tcp"},
    "address": {"type": "str", "required": True},
    "port": {"type": "int", "required": True},
    "source": {"type": "str", "required": True},
    "name": {"type": "str", "default": ""},
    "host": {"type": "str", "default": ""},
}
# Of the forwarder; where none runs, the samples are root's.
CONFIG = "/etc/l4proxy/forwarder.json"
RUNTIME = "/run/l4proxy/forwarder.json"
ARGUMENTS = {
    "role": {"type": "str", "choices": ["send", "watch"], "required": True},
    "targets": {"type": "list", "elements": "dict", "default": [], "options": TARGET_SPEC},
    "seconds": {"type": "float", "default": 20},
    "samples": {"type": "list", "elements": "dict", "default": []},
    "timeout": {"type": "float", "default": 5},
}


def faults(options: dict) -> list[str]:
    """Say what is wrong with the options, each fault with its path."""
    found = []
    for name in ("targets", "samples"):
        for index, one in enumerate(options[name]):
            where = f"{name}[{index}]"
            found += _faults(where, one)
            if name == "samples" and not isinstance(one.get("token"), int):
                found.append(f"{where}.token: {one.get('token')!r} is not that of a sample that was sent")
    if not 1 <= options["seconds"] <= 600:
        found.append(f"seconds: {options['seconds']:g} is not a number from 1 to 600")
    return found


def _faults(where: str, one: dict) -> list[str]:
    found, versions = [], set()
    for key in ("address", "source"):
        try:
            versions.add(ipaddress.ip_address(str(one.get(key))).version)
        except ValueError:
            found.append(f"{where}.{key}: {one.get(key)!r} is not an IP address")
    if len(versions) > 1:
        found.append(f"{where}: {one['address']} and {one['source']} are of different families")
    if not isinstance(one.get("port"), int) or not 1 <= one["port"] <= 65535:
        found.append(f"{where}.port: {one.get('port')!r} is not a port (1-65535)")
    if one.get("protocol") not in proof.PROTOCOLS:
        found.append(f"{where}.protocol: {one.get('protocol')!r} is neither tcp nor udp")
    return found


def send(options: dict) -> dict:
    chosen = proof.samples(options["targets"])
    if chosen:
        running = forwarder.read(CONFIG, RUNTIME, "/proc")
        proof.send_in_background(chosen, options["seconds"], (running and running.uid) or 0)
    pairs = zip(chosen, options["targets"])
    return {"samples": [{**one.to_dict(), "name": target["name"], "host": target["host"]} for one, target in pairs]}


def watch(options: dict) -> dict:
    keys = ("protocol", "address", "port", "source", "source_port", "token")
    chosen = [proof.Sample(**{key: one.get(key) for key in keys}) for one in options["samples"]]
    seen = proof.watch(chosen, options["timeout"])
    return {
        "results": [
            {
                **given,
                "seen": address,
                "hidden": bool(address) and ipaddress.ip_address(address) != ipaddress.ip_address(one.source),
                "sentence": f"{given.get('name') or one.address}: {proof.sentence(one.source, address)}",
            }
            for given, one, address in zip(options["samples"], chosen, seen)
        ]
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    wrong = faults(module.params)
    if wrong:
        module.fail_json(msg="; ".join(wrong))
    if module.check_mode:
        module.exit_json(changed=False, samples=[], results=[], skipped=True, msg="nothing is sent in check mode")
    try:
        result = (send if module.params["role"] == "send" else watch)(module.params)
    except OSError as error:
        module.fail_json(msg=f"{error.strerror}: raw sockets need root or CAP_NET_RAW, and the address a route")
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
