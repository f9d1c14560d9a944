# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the doctor reads on a host of the lab."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts import gather
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.document import documents

from tests.support.routing import Engine

#: Files of the machine that the lab does not have.
MACHINE = ("config", "runtime", "keeper", "systemd", "networkd")


def doctor_facts(
    host: Any,
    engine: Engine,
    directory: Path,
    wanted: dict | None = None,
    clients: dict | None = None,
    ports: Any = (),
    /,
    **sources: Any,
):
    """The facts of a host with the documents in ``directory``; with ``wanted``, before that document is applied.

    There is no systemd and no forwarder, unless ``sources`` has them.
    """
    none = dict.fromkeys(MACHINE, str(directory / "none"))
    options = {"host": engine.host(host), "directory": str(directory), **none, **sources}
    with host.inside():
        return gather.gather(gather.Sources(**options), wanted and documents.load(wanted), clients, ports)
