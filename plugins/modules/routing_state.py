# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module ``routing_state``: all rules, routes, marks, sysctls, addresses and services of one owner."""

from __future__ import annotations

DOCUMENTATION = r"""
module: routing_state
short_description: Apply a state document of policy rules, routes, marks, sysctls, addresses and services
version_added: 0.1.0
author:
  - The trueip.l4proxy authors (@trueip)
description:
  - Applies all objects of one owner at once. Stores the document for the keeper, which applies it again at boot.
  - Removes objects of this owner that the document does not list. Never touches objects of others. A document that
    conflicts with them is refused before anything is changed.
  - When a change fails, it is undone together with all changes before it.
  - Adds objects before it removes others, so that unrelated connections are not interrupted.
seealso:
  - name: State documents
    description: Every key of O(document).
    link: https://github.com/trueip/l4proxy/blob/main/docs/docsite/rst/documents.rst
extends_documentation_fragment:
  - trueip.l4proxy.attributes
attributes:
  check_mode:
    support: full
    details:
      - Without pyroute2 or nft on the host, check mode warns and assumes that the owner has nothing there.
  diff_mode:
    support: full
  platform:
    support: full
requirements:
  - python3-pyroute2 on the host (0.7.2 or newer)
  - nftables on the host (1.0.6 or newer), when the document has marks or services
options:
  owner:
    description:
      - The name of the owner, such as V(return_path) or V(local_delivery).
    type: str
    required: true
  document:
    description:
      - The state document, with the keys C(schema), C(owner), C(protocol), C(rules), C(routes), C(marks), C(sysctls),
        C(addresses), C(services), C(forwarding).
      - Required with O(state=present). With O(state=absent), only its C(protocol) is used.
    type: dict
  state:
    description:
      - V(present) applies O(document).
      - V(absent) removes all that the owner has, restores the sysctls that it changed, and deletes the stored document.
    type: str
    choices: [present, absent]
    default: present
  purge:
    description:
      - Whether to remove objects of the owner that O(document) does not list.
      - The keeper always removes them, so with V(false) they stay until the next boot at most. But services that the
        kernel forwards, and what these need, are stored together with the document, so they stay until the next run
        with V(true).
    type: bool
    default: true
  drain:
    description:
      - Objects that O(document) no longer lists are kept while connections need them, for this many seconds at most.
        V(unlimited) keeps them until the last of these connections has ended. V(0) removes them at once and breaks
        these connections.
      - Kept objects are stored as C(retiring). The keeper counts their connections in conntrack and in the list of
        sockets, and removes them when there are none, but not in the first 10 minutes (the first half of a shorter
        time), which give a run time to change the other end too.
      - With V(unlimited), an object whose connections cannot be counted is removed after a day.
      - A later run may set a lower limit for what is kept already.
      - What the keeper has removed leaves the stored document with the next run, which does not report that as changed.
      - Ignored without O(purge).
    type: str
    default: "0"
  allow_empty:
    description:
      - Whether to accept a O(document) without any objects, which removes all that the owner has.
    type: bool
    default: false
  persist:
    description:
      - Whether to store the document in O(directory) once it is applied, or to delete it there with O(state=absent).
    type: bool
    default: true
  directory:
    description:
      - The directory of stored documents; each is named C(OWNER.json).
    type: path
    default: /etc/l4proxy/routing.d
"""

EXAMPLES = r"""
- name: Send replies back through the proxy that forwarded the request
  trueip.l4proxy.routing_state:
    owner: return_path
    document:
      schema: 1
      owner: return_path
      protocol: 202
      rules:
        - {family: ipv4, priority: 1100, fwmark: 11, fwmask: 255, action: lookup, table: 20111}
        - {family: ipv4, priority: 1101, fwmark: 11, fwmask: 255, action: unreachable}
      routes:
        - {family: ipv4, table: 20111, dst: default, type: unicast, via: 198.18.0.11}
      marks:
        - {name: a, id: 11, mask: 255, mac: null, via: [198.18.0.11]}
      sysctls:
        - {name: net.ipv4.conf.all.accept_redirects, value: "0"}

- name: Send replies from a second address back through a proxy, and keep what this replaces while connections need it
  trueip.l4proxy.routing_state:
    owner: return_path
    drain: unlimited
    document:
      schema: 1
      owner: return_path
      protocol: 202
      addresses:
        - {family: ipv4, address: 198.18.0.121, dev: eth0}
      rules:
        - {family: ipv4, priority: 1100, iif: lo, src: 198.18.0.121, action: lookup, table: 20111}
        - {family: ipv4, priority: 1101, iif: lo, src: 198.18.0.121, action: unreachable}
      routes:
        - {family: ipv4, table: 20111, dst: default, type: unicast, via: 198.18.0.11, src: 198.18.0.121}

- name: Remove the return path and restore the sysctls
  trueip.l4proxy.routing_state:
    owner: return_path
    state: absent
"""

RETURN = r"""
changes:
  description: What was changed, or in check mode would be, in order; a sentence each.
  returned: success
  type: list
  elements: str
  sample:
    - "add ip rule 1101: from all fwmark 0xb/0xff unreachable"
    - "add ip route default via 198.18.0.11 dev eth0 table 20111"
waiting:
  description: What is still unknown, such as the MAC of a proxy that does not answer. The keeper adds it later.
  returned: success
  type: list
  elements: str
retiring:
  description: Objects that are kept for a while although the document no longer lists them, as text.
  returned: success
  type: list
  elements: str
cut:
  description: Connections that still needed a kept object when its time was over, a sentence for each object.
  returned: success
  type: list
  elements: str
  sample: ["drain of ip addr 198.18.0.121 dev eth0 ended: 2 connections cut"]
  version_added: 0.2.0
owned:
  description: What the owner has on the host afterwards, as the sections of a state document.
  returned: success
  type: dict
  contains:
    rules:
      description: Policy rules.
      type: list
      elements: dict
    routes:
      description: Routes, with their interface.
      type: list
      elements: dict
    marks:
      description: Packet marks, with the MAC of their proxy.
      type: list
      elements: dict
    sysctls:
      description: Sysctls that this owner holds.
      type: list
      elements: dict
    addresses:
      description: Addresses in addition to the host's own.
      type: list
      elements: dict
    services:
      description: Services that the kernel forwards.
      type: list
      elements: dict
      version_added: 0.2.0
"""

import math
import re
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trueip.l4proxy.plugins.module_utils import _host_module
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing import errors
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile import engine
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared import paths

ARGUMENTS = {
    "owner": {"type": "str", "required": True},
    "document": {"type": "dict"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "purge": {"type": "bool", "default": True},
    "drain": {"type": "str", "default": "0"},
    "allow_empty": {"type": "bool", "default": False},
    "persist": {"type": "bool", "default": True},
    "directory": {"type": "path", "default": paths.DOCUMENTS},
}


def perform(module: AnsibleModule) -> engine.Outcome:
    """Apply the document, or remove the owner's set, as the options say."""
    options = module.params
    host = engine.Host(runner=_host_module.command_runner(module))
    common = {"check": module.check_mode, "directory": options["directory"] if options["persist"] else None}
    document = None if options["document"] is None else documents.load(options["document"])
    if document and document.owner != options["owner"]:
        raise errors.DocumentError([f"owner: {document.owner} differs from the option owner, {options['owner']}"])
    if options["state"] == "absent":
        return engine.remove(options["owner"], host, protocol=document and document.protocol, **common)
    given = {name: options[name] for name in ("purge", "allow_empty")}
    return engine.reconcile(
        document, host, engine.Options(now=time.time(), drain=_seconds(options["drain"]), **given, **common)
    )


def _seconds(drain: str) -> float:
    """The limit of a drain. Refused if it is neither a number of seconds nor ``unlimited``."""
    if drain != "unlimited" and not re.fullmatch("[0-9]+", drain):
        raise errors.Refused([f"drain: {drain!r} is neither a number of seconds (0 or more) nor unlimited"])
    return math.inf if drain == "unlimited" else int(drain)


def main() -> None:
    module = AnsibleModule(
        argument_spec=ARGUMENTS, supports_check_mode=True, required_if=[("state", "present", ["document"])]
    )
    _host_module.respawn_for_pyroute2()
    with _host_module.failing_on_errors(module, "document: "):
        outcome = perform(module)
    for sentence in outcome.warnings:
        module.warn(sentence)
    for sentence in outcome.waiting:
        module.warn(f"applied, but still {sentence}")
    for cut in outcome.cut:
        module.warn(cut.sentence)
    module.exit_json(
        changed=outcome.changed,
        changes=list(outcome.changes),
        diff=list(outcome.diff),
        waiting=list(outcome.waiting),
        retiring=list(outcome.retiring),
        cut=[cut.sentence for cut in outcome.cut],
        owned=outcome.owned,
    )


if __name__ == "__main__":
    main()
