# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Relay programs that listen in place of a backend's server."""

from __future__ import annotations

from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.doctor.facts.model import Relay, Socket

from .. import cases
from ..cases import BACKEND, PUBLISHED, SERVED, B, backend, filtered

DOCKER_PROXY = Relay(Socket("tcp", "0.0.0.0", 8080), "docker-proxy", 7)


def relay(address, port, protocol="tcp", program="socat"):
    return {"relays": (Relay(Socket(protocol, address, port), program, 7),)}


PROBLEMS = [
    (backend(relays=(DOCKER_PROXY,), **SERVED), "fail relayed",
     "docker-proxy (process 7) listens on tcp port 8080 and connects to the server from a socket of its own"),
    (backend(**relay(B, 53, "udp"), sockets=(Socket("udp", B, 53),)), "warn relayed",
     "let the server itself listen on that port"),
]  # fmt: skip
FINE = [
    ("relayed", backend(**relay("127.0.0.1", 8080), **SERVED)),
    ("relayed", backend(**relay("2001:db8::21", 8080), **SERVED)),
    ("relayed", backend(**relay("0.0.0.0", 22), **SERVED)),
    ("relayed", filtered(BACKEND, f"-A {PUBLISHED}", table="nat", relays=(DOCKER_PROXY,), **SERVED)),
    ("relayed", backend(**relay("0.0.0.0", 2377, program="dockerd"), ports=(("tcp", 2377),))),
]

test_a_problem_is_reported_with_a_reason_and_a_fix = cases.reports(PROBLEMS)
test_a_similar_host_without_the_problem_is_fine = cases.is_fine(FINE)
