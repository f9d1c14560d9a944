# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Shared by the modules of the routing engine: an interpreter with pyroute2, a command runner, and error handling."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.common import respawn

from ._routing import errors
from ._routing.document import options
from ._routing.document.model import SINGLE_OBJECTS
from ._routing.host import runner
from ._routing.netlink import kernel
from ._routing.reconcile import engine, single_object

# The python3 of the distribution, for which its package of pyroute2 is installed.
INTERPRETERS = ("/usr/bin/python3", "/usr/libexec/platform-python", "/usr/local/bin/python3")
# Exit codes of timeout(1): the command was terminated, or had to be killed.
TIMED_OUT, KILLED = 124, 137
# The options that policy_rule and policy_route share; their documentation is the fragment single_object.
SINGLE_OBJECT = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "family": {"type": "str", "choices": ["ipv4", "ipv6"]},
    "protocol": {"type": "int", "default": SINGLE_OBJECTS},
}


def respawn_for_pyroute2() -> None:
    """Restart the module with an interpreter that has pyroute2, if there is one."""
    if kernel.PYROUTE2_ERROR and not respawn.has_respawned():
        interpreter = respawn.probe_interpreters_for_module(INTERPRETERS, "pyroute2")
        if interpreter:
            respawn.respawn_module(interpreter)


def command_runner(module: AnsibleModule) -> runner.Runner:
    """A command runner for the engine that uses ``run_command``, with timeout(1) because it has no time limit."""
    bound = [module.get_bin_path("timeout", required=True), "-k", "1", f"{runner.TIMEOUT:g}"]

    def run(argv, stdin=None):
        path = module.get_bin_path(argv[0], opt_dirs=["/usr/sbin", "/sbin"])
        if path is None:
            raise runner.MissingCommand(argv[0])
        code, stdout, stderr = module.run_command([*bound, path, *argv[1:]], data=stdin, use_unsafe_shell=False)
        if code in (TIMED_OUT, KILLED) and not stderr:
            stderr = f"{argv[0]} did not end within {runner.TIMEOUT:g} s"
        return runner.Completed(code, stdout, stderr)

    return run


@contextlib.contextmanager
def failing_on_errors(module: AnsibleModule, prefix: str = "") -> Iterator[None]:
    """Fail the module with the error of the engine; the result ``errors`` lists its sentences.

    ``prefix`` precedes the errors of a document, whose paths begin at its root.
    """
    try:
        yield
    except errors.DocumentError as error:
        module.fail_json(msg=prefix + "\n".join(error.errors), errors=error.errors)
    except errors.MissingPackage as error:
        if error.package == "python3-pyroute2":
            library = missing_required_lib("pyroute2")
            module.fail_json(msg=f"{error}. {library}", exception=kernel.PYROUTE2_ERROR)
        module.fail_json(msg=str(error))
    except (errors.RoutingError, OSError) as error:
        module.fail_json(msg=str(error), errors=getattr(error, "errors", [str(error)]))


def ensure_single(module: AnsibleModule, read: Callable[[dict[str, Any], bool], Any], name: str) -> None:
    """Run a module for one object: ``read`` makes it from the options, ``name`` is its key in the result."""
    respawn_for_pyroute2()
    given = {option: value for option, value in module.params.items() if option not in ("state", "protocol")}
    present = module.params["state"] == "present"
    with failing_on_errors(module):
        protocol = options.protocol(module.params["protocol"])
        host = engine.Host(runner=command_runner(module))
        outcome = single_object.ensure(
            read(given, present), host, protocol=protocol, present=present, check=module.check_mode
        )
    for sentence in outcome.warnings:
        module.warn(sentence)
    objects = [item for items in outcome.owned.values() for item in items]
    module.exit_json(
        changed=outcome.changed,
        changes=list(outcome.changes),
        diff=list(outcome.diff),
        **{name: objects[0] if objects else {}},
    )
