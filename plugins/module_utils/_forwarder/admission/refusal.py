# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a client is refused. Each Refusal is made where the decision is made:

- denied: acl.py (allow, deny)
- limited: limits.py (limits of the service and of a client)
- never_spoofed: never_spoofed.py (addresses that cannot be the source)
- no_backend: backends/balancer.py; connect_failed: tcp/relay.py, udp/server.py; bad_header: tcp/header_reader.py
"""

from __future__ import annotations

from typing import NamedTuple

# Why a session is ended whose service, listener or backend left the config: for the log.
SERVICE, LISTENER, BACKEND = "service removed", "listener removed", "backend removed"
TO_KERNEL = "the kernel forwards the service"  # a UDP session, whose next datagram the kernel forwards
BACKEND_DOWN = "backend down"  # the same, of a session whose backend the health checks have found down


class Refusal(NamedTuple):
    """A reason to refuse a client.

    ``cause`` is one of shared_memory.REFUSED and a label of the metrics; ``text`` is for the log, and may change.
    """

    cause: str
    text: str
