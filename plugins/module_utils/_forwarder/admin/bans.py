# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The admin commands about bans.

{"op": "deny", "network": ADDRESS or NETWORK, "service": NAME or null (all), "seconds": int or null (for good),
 "reason": str, "renew": false to leave the end of a ban that has one, "check": true to change nothing}: the answer has
 "changed", "network" as it is stored, "expires" (a time or null), "reason", and "before": these two of the ban before
{"op": "allow", "network", "service", "check"}: lift that ban; "remaining" are other bans that still deny some of it
{"op": "denied"}: {"bans": [{"network", "service", "expires", "seconds_left", "reason", "since"}], "files": {path:
 {"networks", "loaded_at", "error"}}}
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ..._shared.integers import is_whole
from .protocols import at_once

LONGEST = 10 * 366 * 86400  # seconds; a ban for longer is for good
MAX_REASON = 200  # characters
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"([0-9]{1,9})([smhdw]?)\Z")


class Lists(Protocol):
    """What the commands use of process/deny_lists.py. ValueError is a sentence for the operator."""

    def deny(self, network: str, service: str | None, wanted: dict[str, Any]) -> dict[str, Any]:
        """Ban a network; raise ValueError."""

    def allow(self, network: str, service: str | None, wanted: dict[str, Any]) -> dict[str, Any]:
        """Lift a ban; raise ValueError."""

    def listed(self) -> dict[str, Any]:
        """Return all bans of operators, and the files."""


def parse_duration(text: str) -> int:
    """Return the seconds of "90", "15m", "1h", "7d" or "2w"; raise ValueError, a sentence."""
    found = _DURATION.match(text)
    seconds = int(found[1]) * UNITS[found[2] or "s"] if found else 0
    if not 1 <= seconds <= LONGEST:
        raise ValueError(f"{text!r} is not a duration, such as 90s, 15m, 1h or 7d, of at most ten years")
    return seconds


def show(forwarder: Any) -> Callable[[Any, dict], None]:
    """Return the function(client, request) that answers "denied"."""
    return lambda client, _request: client.write(at_once(_pieces(forwarder.deny_lists.listed())))


def _pieces(listed: dict[str, Any]) -> Iterator[str]:
    yield json.dumps({"ok": True, "files": listed["files"]})[:-1] + ', "bans": ['
    for number, ban in enumerate(listed["bans"]):
        yield f"{', ' if number else ''}{json.dumps(ban)}"
    yield "]}\n"


def commands(
    forwarder: Any, check_service: Callable[[Any], object], refused: type[Exception]
) -> dict[str, Callable[[dict], dict]]:
    """Return {op: function(request)}; they raise ``refused`` with a sentence. ``forwarder.deny_lists`` are Lists."""

    def refusing(function):
        def run(request):
            try:
                return {"ok": True, **function(request)}
            except ValueError as error:
                raise refused(str(error)) from None

        return run

    def selected(request):
        network, service = request.get("network"), request.get("service")
        if not isinstance(network, str):
            raise ValueError("network must be an address or a network")
        if not isinstance(service, (str, type(None))):
            raise ValueError("service must be the name of a service")
        return network, service, request

    def deny(request):
        found, seconds, reason = selected(request), request.get("seconds"), request.get("reason", "")
        check_service(found[1])  # a ban of a service that has left the config can only be lifted
        if seconds is not None and not is_whole(seconds, 1, LONGEST):
            raise ValueError(f"seconds must be a whole number from 1 to {LONGEST}, or null for a ban without an end")
        if not isinstance(reason, str) or len(reason) > MAX_REASON or not reason.isprintable():
            raise ValueError(f"reason must be text of at most {MAX_REASON} printable characters")
        return forwarder.deny_lists.deny(*found)

    def allow(request):
        return forwarder.deny_lists.allow(*selected(request))

    return {"deny": refusing(deny), "allow": refusing(allow)}
