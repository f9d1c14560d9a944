# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cost of health checks: ``python -m tests.bench.checker SECONDS [KIND...]``, as root.

300 backends of one family are asked every 2 s; the checker's user and system time comes from /proc. Each kind of check
has a bound, a part of one core in all. Backends are ports of two hosts, which makes no difference to who asks.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.bench.measure import cpu_seconds
from tests.lab.daemons import self_signed
from tests.support.forwarding import Forwarder, make_config, raise_lab, wire
from tests.support.waiting import eventually

BACKENDS, INTERVAL = 300, 2.0
HOSTS = ("b", "c")
PORTS, TLS_PORTS = range(10_000, 10_000 + BACKENDS // 2), range(20_000, 20_000 + BACKENDS // 2)
#: The keys of ``health`` of a kind of check, and its bound.
KINDS = {
    "handshake": ({}, 0.02),
    "HTTP": ({"http": {}}, 0.05),
    "TLS": ({"tls": {}}, 0.15),
    "TLS, HTTP": ({"tls": {}, "http": {}}, 0.15),
    "TLS verified, HTTP": ({"tls": {"verify": True, "server_name": HOSTS[0]}, "http": {}}, 0.15),
}


def start_servers(lab) -> Path:
    """Start nginx on both hosts, on all ports; return the certificate of its TLS ports."""
    certificate, key = self_signed(Path(lab.tmp), HOSTS[0])
    certificate.chmod(0o644)  # the forwarder is another user
    listen = "".join(f"\n    listen 0.0.0.0:{port} ssl;" for port in TLS_PORTS)
    for host in HOSTS:
        lab.nginx(host, PORTS, f"{listen}\n    ssl_certificate {certificate};\n    ssl_certificate_key {key};")
    return certificate


def main(seconds: float, kinds: list[str]) -> int:
    """Measure and print one line for each kind; return 1 if one is above its bound."""
    with raise_lab("bc") as lab:
        wire(lab)
        certificate = start_servers(lab)
        results = []
        for kind in kinds or KINDS:
            health, bound = KINDS[kind]
            if health.get("tls", {}).get("verify"):
                health["tls"]["ca_file"] = str(certificate)
            results.append(measure(lab, kind, health, bound, seconds))
    return 0 if all(results) else 1


def measure(lab, kind, health, bound, seconds) -> bool:
    """Print the cost of one kind of check; return whether it is within its bound and all backends are up."""
    ports = TLS_PORTS if "tls" in health else PORTS
    service = {
        "name": "many",
        "listen": [{"address": "0.0.0.0", "port": 80}],
        "backends": [
            {"name": f"{host}{port}", "ipv4": lab[host].ipv4, "port": port} for port in ports for host in HOSTS
        ],
        "health": {"interval": INTERVAL, **health},
    }
    with Forwarder(lab, make_config(service)) as forwarder:
        eventually(lambda: set(states(forwarder)) == {"up"}, "all are up", forwarder.show)
        time.sleep(INTERVAL)  # for a round of each
        (checker,) = forwarder.children("l4-checker")
        before, rounds, begun = cpu_seconds([checker]), checks(forwarder), time.monotonic()
        time.sleep(seconds)
        used, rounds, passed = cpu_seconds([checker]) - before, checks(forwarder) - rounds, time.monotonic() - begun
        all_up = set(states(forwarder)) == {"up"}
    part = used / passed
    print(
        f"{kind}: {BACKENDS} backends every {INTERVAL:g} s: {part:.2%} of a core ({1e6 * used / rounds:.0f} us a round,"
        f" {rounds} rounds in {passed:.1f} s, all {'up' if all_up else 'NOT up'}); the bound is {bound:.0%}"
    )
    return part <= bound and all_up


def targets(forwarder):
    """Return the status of every backend."""
    return [backend["families"]["ipv4"] for backend in forwarder.status()["services"][0]["backends"]]


def states(forwarder):
    """Return the state of every backend."""
    return [one["state"] for one in targets(forwarder)]


def checks(forwarder):
    """Return the number of rounds so far."""
    return sum(one["checks"] for one in targets(forwarder))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
