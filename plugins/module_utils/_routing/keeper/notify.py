# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""sd_notify(3): the keeper's messages to systemd."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping

log = logging.getLogger("l4proxy.keep")


def notify(message: str, environ: Mapping[str, str]) -> None:
    """Send assignments such as ``STATUS=...``, one per line; do nothing if NOTIFY_SOCKET is not set."""
    path = environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as systemd:
        try:
            systemd.sendto(message.encode(), address)
        except OSError as error:
            log.warning("cannot notify systemd (%s): %s", path, error)
