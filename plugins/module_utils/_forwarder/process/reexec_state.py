# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state that the supervisor leaves for the program that replaces it by exec at a reload.

It is a JSON document in a memfd, which has no size limit (an environment variable has, 128 KiB) and no path. An
environment variable has the pid and the descriptor; the pid keeps any other process from using the descriptor.

The keys are a protocol between versions: a program must accept the state of any version since 0.1.0.
"""

from __future__ import annotations

import json
import os

VARIABLE = "L4PROXY_HANDOVER"
SCHEMA = 1


def leave(state, descriptors):
    """Return {name: value} of the environment variable by which the next program finds ``state``; raise OSError.

    ``descriptors``, and that of the document, will stay open over an exec.
    """
    memory = os.memfd_create("l4proxy-handover", 0)
    variable = {VARIABLE: f"{os.getpid()}:{memory}"}
    try:
        with open(memory, "w", encoding="utf-8", closefd=False) as stream:
            json.dump({"schema": SCHEMA, **state}, stream)
        for number in descriptors:
            os.set_inheritable(number, True)
    except BaseException:
        recall(variable, descriptors)
        raise
    return variable


def recall(variable, descriptors):
    """Undo leave(), because the exec has failed."""
    os.close(int(variable[VARIABLE].partition(":")[2]))
    for number in descriptors:
        os.set_inheritable(number, False)


def take(environ):
    """Return the state left for this process, or None; remove the variable from ``environ``."""
    pid, _colon, number = environ.pop(VARIABLE, "").partition(":")
    if pid != str(os.getpid()):
        return None
    with open(int(number), encoding="utf-8") as stream:
        stream.seek(0)
        return json.load(stream)
