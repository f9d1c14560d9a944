# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The option O(targets) of handshake_probe and source_proof; its argument spec is module_utils/_probe_targets.py."""

from __future__ import annotations


# ansible-test reads only plain strings, so both fragments list the common suboptions.
class ModuleDocFragment:
    # For handshake_probe.
    DOCUMENTATION = r"""
options:
  targets:
    description: The backends to probe.
    type: list
    elements: dict
    required: true
    suboptions:
      address:
        description: The IPv4 or IPv6 address of the backend.
        type: str
        required: true
      port:
        description: The port of the backend, 1 to 65535.
        type: int
        required: true
      source:
        description: The source address to use, of the same family as O(targets[].address).
        type: str
        required: true
      name:
        description: A name for messages.
        type: str
        default: ""
"""

    # For source_proof.
    PROOF = r"""
options:
  targets:
    description: With O(role=send), the backends to send samples to.
    type: list
    elements: dict
    default: []
    suboptions:
      address:
        description: The IPv4 or IPv6 address of the backend.
        type: str
        required: true
      port:
        description: The port of the backend, 1 to 65535.
        type: int
        required: true
      source:
        description: The source address to use, of the same family as O(targets[].address).
        type: str
        required: true
      name:
        description: A name for messages.
        type: str
        default: ""
      protocol:
        description: The protocol of the service.
        type: str
        choices: [tcp, udp]
        default: tcp
      host:
        description: The inventory name of the backend; returned in RV(samples[].host).
        type: str
        default: ""
"""
