# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a supervisor leaves to the program that replaces it in its own process at a reload.

The state is a JSON document in a memfd: it has no size limit (an environment variable ends at 128 kB) and no name in
any file system. The environment names the descriptor and, so that no other process can take it for its own, the pid.
"""

from __future__ import annotations

import json
import os

VARIABLE = "L4PROXY_HANDOVER"
SCHEMA = 1


def leave(state, descriptors):
    """Return the environment variable that leads the next program to ``state`` (JSON); raise OSError.

    ``descriptors`` and the document's own stay open over exec.
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
    """Undo leave(): the exec did not happen."""
    os.close(int(variable[VARIABLE].partition(":")[2]))
    for number in descriptors:
        os.set_inheritable(number, False)


def take(environ):
    """Return the state that was left to this process, None when there is none; clears it from ``environ``."""
    pid, _colon, number = environ.pop(VARIABLE, "").partition(":")
    if pid != str(os.getpid()):
        return None
    with open(int(number), encoding="utf-8") as stream:
        stream.seek(0)
        return json.load(stream)
