# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""sd_notify(3): the keeper's messages to systemd."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping

from ..._shared.environment import notify_address

log = logging.getLogger("l4proxy.keep")


def notify(message: str, environ: Mapping[str, str]) -> None:
    """Send assignments such as ``STATUS=...``, one per line; do nothing if NOTIFY_SOCKET is not set."""
    address = notify_address(environ)
    if address is None:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as systemd:
        try:
            systemd.sendto(message.encode(), address)
        except OSError as error:
            log.warning("cannot notify systemd (%s): %s", environ["NOTIFY_SOCKET"], error)
