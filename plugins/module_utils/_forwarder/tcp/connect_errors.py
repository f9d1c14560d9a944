# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the errno of a failed connect or connection means: whose fault it is, and how the log words it. Pure."""

from __future__ import annotations

import errno

#: Errors of connect(2) itself that blame the backend or the route to it; all others are about this host. What the
#: network answers later never is about this host, and ICMP has more to say than these.
BLAMES_BACKEND = {
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.ECONNABORTED,
}

#: This host lacks descriptors or memory: no other backend would help.
HOPELESS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

_RESET_BY_PEER = {0, errno.ECONNRESET, errno.EPIPE}
#: The kernel gave up a peer that acknowledged nothing (keepalive, TCP_USER_TIMEOUT). The errno is the last that it
#: heard of the peer: ETIMEDOUT, or what ICMP or the neighbour table said.
_TIMED_OUT = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN}


def end_reason(peer: str, number: int) -> str | None:
    """Return why a connection with ``peer`` ("client" or "backend") failed with this errno; None: a plain reset."""
    if number in _RESET_BY_PEER:
        return None
    return f"{peer} {'timed out' if number in _TIMED_OUT else 'failed'} ({errno.errorcode.get(number, number)})"
