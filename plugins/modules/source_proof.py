# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: source_proof
author: The trueip.l4proxy authors (@trueip)
version_added: 0.2.0
short_description: Find out which source address a backend sees
description:
  - A successful handshake does not prove that the backend sees the client's address, because source NAT on the way
    replaces the address and translates the replies back. Only the backend can tell.
  - With O(role=send), run it on a proxy. It sends samples to the backends in the background, from a source address
    that the host does not own, as the forwarder does for its clients. If the forwarder runs, the samples have its user
    id, so that rules that match the owner of a socket apply to them.
  - With O(role=watch), run it on a backend at the same time. It returns the source address that a server there sees.
  - Servers do not notice the samples. Over TCP, a sample is a SYN whose handshake is never completed. Over UDP, it is
    a datagram with a wrong checksum, which the kernel of the backend drops.
  - A UDP sample shows the way to the backend, but not input NAT on the backend itself.
  - Sends packets, but changes nothing on any host. In check mode, nothing is sent or watched for.
options:
  role:
    description: Whether this host sends the samples (a proxy) or watches for them (a backend).
    type: str
    choices: [send, watch]
    required: true
  seconds:
    description: With O(role=send), how long to send, 1 to 600 seconds. Each target gets two samples a second.
    type: float
    default: 20
  samples:
    description: With O(role=watch), those of the sender's RV(samples) that were sent to this host.
    type: list
    elements: dict
    default: []
  timeout:
    description: With O(role=watch), seconds to watch for the samples.
    type: float
    default: 5
extends_documentation_fragment:
  - trueip.l4proxy.attributes.info
  - trueip.l4proxy.probe_targets.proof
"""

EXAMPLES = r"""
- name: Send samples to a web server from a documentation address
  trueip.l4proxy.source_proof:
    role: send
    seconds: 10
    targets:
      - {name: web, address: 198.18.0.21, port: 8080, source: 198.51.100.11}
      - {name: web, address: "2001:db8::21", port: 8080, source: "2001:db8:ffff::11"}
  register: sent

- name: Check which source address the backend sees
  trueip.l4proxy.source_proof:
    role: watch
    samples: "{{ sent.samples }}"
  delegate_to: b
"""

RETURN = r"""
samples:
  description: The samples that are being sent, one for each of O(targets).
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
      description: The source port.
      type: int
    token:
      description: A number that identifies the sample, even if its addresses and ports are translated.
      type: int
results:
  description: One result for each sample, in the order of O(samples).
  returned: O(role=watch)
  type: list
  elements: dict
  contains:
    seen:
      description: The source address that the sample has on this host; empty if it did not arrive.
      type: str
    hidden:
      description: Whether it differs from the address that was used for sending.
      type: bool
    sentence:
      description: What the result means.
      type: str
"""

import ipaddress

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trueip.l4proxy.plugins.module_utils import _probe_targets
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts import forwarder
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared import paths
from ansible_collections.trueip.l4proxy.plugins.module_utils._source_proof import observer, sender
from ansible_collections.trueip.l4proxy.plugins.module_utils._source_proof.sample import PROTOCOLS, Sample, make_samples

TARGET_SPEC = {
    **_probe_targets.SPEC,
    "protocol": {"type": "str", "choices": ["tcp", "udp"], "default": "tcp"},
    "host": {"type": "str", "default": ""},
}
ARGUMENTS = {
    "role": {"type": "str", "choices": ["send", "watch"], "required": True},
    "targets": {"type": "list", "elements": "dict", "default": [], "options": TARGET_SPEC},
    "seconds": {"type": "float", "default": 20},
    "samples": {"type": "list", "elements": "dict", "default": []},
    "timeout": {"type": "float", "default": 5},
}


def errors_of(options: dict) -> list[str]:
    """What is wrong with the options, a sentence each, beginning with the path."""
    errors = []
    for option in ("targets", "samples"):
        for index, item in enumerate(options[option]):
            path = f"{option}[{index}]"
            errors += _probe_targets.errors_of(item, path)
            if item.get("protocol") not in PROTOCOLS:
                errors.append(f"{path}.protocol: {item.get('protocol')!r} is neither tcp nor udp")
            if option == "samples" and not isinstance(item.get("token"), int):
                errors.append(f"{path}.token: {item.get('token')!r} is not the token of a sample")
    if not 1 <= options["seconds"] <= 600:
        errors.append(f"seconds: {options['seconds']:g} is not a number from 1 to 600")
    return errors


def send(options: dict) -> dict:
    """Send samples in the background; returns them with the names of their targets."""
    samples = make_samples(options["targets"])
    if samples:
        # Without a running forwarder, the samples have root's user id.
        running = forwarder.read(paths.CONFIG, paths.RUNTIME_FILE, "/proc")
        sender.send_in_background(samples, options["seconds"], (running and running.uid) or 0)
    pairs = zip(samples, options["targets"])
    return {
        "samples": [{**sample.to_dict(), "name": target["name"], "host": target["host"]} for sample, target in pairs]
    }


def watch(options: dict) -> dict:
    """Watch for the samples on this host; returns a result for each of them."""
    keys = ("protocol", "address", "port", "source", "source_port", "token")
    samples = [Sample(**{key: given.get(key) for key in keys}) for given in options["samples"]]
    seen = observer.observe(samples, options["timeout"])
    return {
        "results": [
            {
                **given,
                "seen": address,
                "hidden": bool(address) and ipaddress.ip_address(address) != ipaddress.ip_address(sample.source),
                "sentence": f"{given.get('name') or sample.address}: {observer.conclusion(sample.source, address)}",
            }
            for given, sample, address in zip(options["samples"], samples, seen)
        ]
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    errors = errors_of(module.params)
    if errors:
        module.fail_json(msg="; ".join(errors))
    if module.check_mode:
        module.exit_json(changed=False, samples=[], results=[], skipped=True, msg="nothing is sent in check mode")
    try:
        result = (send if module.params["role"] == "send" else watch)(module.params)
    except OSError as error:
        module.fail_json(msg=f"{error.strerror}: raw sockets need root or CAP_NET_RAW, and the backend needs a route")
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
