# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The module ``routing_state_info``: policy routing of this collection and of others on a host, and findings."""

from __future__ import annotations

DOCUMENTATION = r"""
module: routing_state_info
short_description: Inspect a host's policy routing, and find what would break the path
version_added: 0.1.0
author:
  - The trueip.l4proxy authors (@trueip)
description:
  - Lists what this collection owns on the host, by owner, and the rules and routes of others that may affect it.
  - Runs the checks of C(l4proxy doctor). Each finding says what is wrong, why it matters here, and which command or
    variable fixes it.
  - With O(document), checks a document that is not applied yet, as the roles do before their first change.
  - Changes nothing. Sends only ARP and ND requests for the proxies of the stored documents.
extends_documentation_fragment:
  - trueip.l4proxy.attributes
  - trueip.l4proxy.attributes.info
requirements:
  - python3-pyroute2 on the host; without it, rules, routes and neighbours are not checked
options:
  document:
    description:
      - A state document that is still to be applied. Only checks that make sense before that are run.
      - Without it, the documents in O(directory) are checked.
    type: dict
  directory:
    description: The directory of stored documents.
    type: path
    default: /etc/l4proxy/routing.d
  config:
    description: The config of the forwarder. A host without this file is not a proxy, or has another forwarder.
    type: path
    default: /etc/l4proxy/forwarder.json
  clients:
    description:
      - Client addresses to check the path for, at most one of each family. By default, documentation addresses.
      - A packet filter that drops such a client is a failure if the client is listed here, otherwise a warning.
    type: list
    elements: str
    default: []
  ports:
    description: The ports that this host serves, as V(PORT), V(PORT/tcp) or V(PORT/udp). By default, all that listen.
    type: list
    elements: str
    default: []
  ignore_findings:
    description: Ids of checks to skip.
    type: list
    elements: str
    default: []
  fail_on_findings:
    description: Whether findings with status V(fail) fail the task. Those with status V(warn) then become warnings.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Check the path on this host
  trueip.l4proxy.routing_state_info:
  register: routing

- name: Print what is wrong
  ansible.builtin.debug:
    msg: "{{ routing.findings | selectattr('status', 'in', ['fail', 'warn']) | map(attribute='line') }}"

- name: Fail where a client would not get through
  trueip.l4proxy.routing_state_info:
    clients: [192.0.2.7]
    ports: ["8080", 53/udp]
    ignore_findings: [networkd]
    fail_on_findings: true
"""

RETURN = r"""
findings:
  description: The result of each check; failures first, and causes before their symptoms.
  returned: always
  type: list
  elements: dict
  contains:
    id:
      description: The check.
      type: str
      sample: rp_filter
    status:
      description: V(fail) breaks the path, V(warn) may break it, V(skip) could not be checked.
      type: str
      choices: [fail, warn, skip, ok]
    subject:
      description: The interface, proxy, rule or port concerned.
      type: str
    what:
      description: What was found.
      type: str
    why:
      description: What it does to the path; empty for V(skip) and V(ok).
      type: str
    fix:
      description: The command or variable that fixes it; empty for V(skip) and V(ok).
      type: str
    line:
      description: The finding as one line of text.
      type: str
owners:
  description: What this collection has on the host, by owner; null without pyroute2 or nft, or if it cannot be read.
  returned: success
  type: dict
  contains:
    OWNER:
      description:
        - The sections C(rules), C(routes), C(marks) and C(services) of a state document, as they are in the kernel, and
          C(sysctls).
        - Each of C(sysctls) has C(name), C(value), and C(restore), the value that is restored when the owner
          releases it.
      type: dict
foreign:
  description:
    - Rules of others, except the kernel's own three, and routes of others in tables that the documents use.
    - Null if they cannot be read.
  returned: success
  type: dict
  contains:
    rules:
      description: Each with C(family), C(text) in the words of C(ip rule), C(protocol) and C(owner).
      type: list
      elements: dict
    routes:
      description: Each with C(family), C(text) in the words of C(ip route), C(protocol) and C(owner).
      type: list
      elements: dict
"""

from dataclasses import replace

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trueip.l4proxy.plugins.module_utils import _host_module
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing import errors
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor import finding, ownership, registry, report
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts import gather as doctor
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts import unread
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.reconcile.host import Host
from ansible_collections.trueip.l4proxy.plugins.module_utils._shared import paths

STRINGS = {"type": "list", "elements": "str", "default": []}
ARGUMENTS = {
    "document": {"type": "dict"},
    "directory": {"type": "path", "default": paths.DOCUMENTS},
    "config": {"type": "path", "default": paths.CONFIG},
    "clients": STRINGS,
    "ports": STRINGS,
    "ignore_findings": STRINGS,
    "fail_on_findings": {"type": "bool", "default": False},
}


def inspect(module: AnsibleModule) -> dict:
    """The result of the module. ValueError for invalid options."""
    options = module.params
    unknown = sorted(set(options["ignore_findings"]) - {check.id for check in registry.CHECKS})
    if unknown:
        raise ValueError(f"ignore_findings: there is no check {', '.join(unknown)}")
    document = None if options["document"] is None else documents.load(options["document"])
    host = Host(runner=_host_module.command_runner(module))
    sources = doctor.Sources(host=host, directory=options["directory"], config=options["config"])
    clients = report.by_family(options["clients"])
    facts = doctor.gather(sources, document, clients, [report.parse_port(port) for port in options["ports"]])
    reader = unread.Reader()
    lists = {
        "owners": reader.read("what is ours on this host", _owners, host, facts.documents),
        "foreign": reader.read("what others have on this host", ownership.foreign, facts),
    }
    facts = replace(facts, unread={**facts.unread, **reader.unread})
    findings = finding.ordered(registry.examine(facts, options["ignore_findings"]))
    return {
        "findings": [{**each.to_dict(), "line": each.line} for each in findings],
        **{name: None if isinstance(listed, unread.Unread) else listed for name, listed in lists.items()},
    }


def _owners(host: Host, documents: tuple) -> dict | None:
    try:
        return ownership.owned(host, documents)
    except errors.MissingPackage:
        return None


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    _host_module.respawn_for_pyroute2()
    try:
        with _host_module.failing_on_errors(module, "document: "):
            result = inspect(module)
    except ValueError as error:
        module.fail_json(msg=str(error))
    if module.params["fail_on_findings"]:
        lines = {
            status: [each["line"] for each in result["findings"] if each["status"] == status]
            for status in (finding.FAIL, finding.WARN)
        }
        for line in lines[finding.WARN]:
            module.warn(line)
        if lines[finding.FAIL]:
            failures = "\n".join(f"- {line}" for line in lines[finding.FAIL])
            msg = f"the path would not work, because of {len(lines[finding.FAIL])} finding(s):\n{failures}"
            module.fail_json(msg=msg, findings=result["findings"])
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
