# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The handshake probe: one TCP handshake from this host with a spoofed source, and the step at fault.

The result names the step at fault:

* *capability*: the kernel refuses the socket;
* *established*: the handshake completes; *server*: the backend answers with a reset, so the path works but nothing
  listens;
* *local_delivery*: no answer, and this host's route lookup would not deliver the backend's reply locally;
* *return_path*: no answer, local delivery works, and the backend answers this host's own address;
* *backend*: no answer to either address.

Like ``_source_proof`` it may import both engines: sockets from the forwarder, route lookups from routing.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from ._forwarder.loop import sockets
from ._routing.netlink import route_query
from ._shared.endpoints import join_endpoint
from ._shared.families import socket_family_of

# Long enough for three SYNs (retransmits after 1 s and 3 s, RFC 6298), so that a slow backend is not taken for silent.
DEFAULT_TIMEOUT = 3.5

# Enough that silent targets take no longer than one, but few enough not to look like a port scan.
MAX_PARALLEL = 32

ESTABLISHED = "established"
SERVER = "server"
CAPABILITY = "capability"
SOURCE = "source"
LOCAL_DELIVERY = "local_delivery"
RETURN_PATH = "return_path"
BACKEND = "backend"


@dataclass(frozen=True)
class Target:
    """Address and port (1-65535) of a backend, the source address to spoof, and a name for messages."""

    address: str
    port: int
    source: str
    name: str = ""

    @property
    def endpoint(self) -> str:
        """``198.18.0.21:8080`` or ``[2001:db8::21]:8080``."""
        return join_endpoint(self.address, self.port)


@dataclass(frozen=True)
class Attempt:
    """The result of one connect: ``error`` is an errno or 0, ``seconds`` its duration."""

    error: int
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """``step`` is the step at fault (``established`` for none), ``seconds`` the duration of the spoofed attempt."""

    step: str
    seconds: float
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON has it, seconds rounded to microseconds."""
        return {**asdict(self), "seconds": round(self.seconds, 6)}


def _connect(make_socket: Any, target: Target, timeout: float) -> Attempt:
    """Connect once and close by reset, so that the server logs no connection and no TIME_WAIT remains."""
    started = time.monotonic()
    error = 0
    try:
        with make_socket() as probe:
            probe.settimeout(timeout)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            probe.connect((target.address, target.port))
    except socket.timeout:
        error = errno.ETIMEDOUT
    except OSError as failure:
        error = failure.errno or errno.EIO
    return Attempt(error, time.monotonic() - started)


def spoofed_attempt(target: Target, timeout: float) -> Attempt:
    """Connect from the spoofed source. Needs CAP_NET_RAW."""
    return _connect(
        lambda: sockets.transparent_socket(socket_family_of(target.address), target.source), target, timeout
    )


def own_attempt(target: Target, timeout: float) -> Attempt:
    """Connect from this host's own address."""
    return _connect(lambda: socket.socket(socket_family_of(target.address), socket.SOCK_STREAM), target, timeout)


def reply_lookup(target: Target) -> str:
    """This host's route lookup for the backend's reply.

    :returns: ``local``, or a description of the other route.
    """
    outgoing = route_query.route_get(target.address)
    if outgoing.dev is None:
        return f"no route to {target.address}: {outgoing.type}"
    answer = route_query.route_get(target.source, src=target.address, iif=outgoing.dev, ip_proto="tcp")
    if answer.type in ("local", "refused"):
        return answer.type if answer.type == "local" else f"{answer.error}, a martian source or rp_filter"
    shown = [("via", answer.via), ("dev", answer.dev), ("error", answer.error)]
    return " ".join([answer.type] + [f"{word} {value}" for word, value in shown if value])


def diagnose(target: Target, spoofed: Attempt, lookup: str = "local", own: Attempt | None = None) -> Verdict:
    """Find the step at fault. Pure.

    :param lookup: the result of :func:`reply_lookup`; needed if the ``spoofed`` attempt got no answer.
    :param own: the attempt from this host's own address; needed if the ``spoofed`` attempt got no answer.
    """
    step, sentence = _judge(target, spoofed, lookup, own)
    return Verdict(step, spoofed.seconds, f"{target.name}: {sentence}" if target.name else sentence)


def _judge(target: Target, spoofed: Attempt, lookup: str, own: Attempt | None) -> tuple[str, str]:
    where, source = target.endpoint, target.source
    if spoofed.error == 0:
        return ESTABLISHED, f"established with {where} as {source} in {spoofed.seconds * 1000:.1f} ms"
    if spoofed.error in (errno.EPERM, errno.EACCES):
        return (
            CAPABILITY,
            "capability: the kernel refused a transparent socket (EPERM); run as root or with CAP_NET_RAW",
        )
    if spoofed.error in (errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EINVAL):
        return (
            SOURCE,
            f"source: {source} cannot be used on this host ({os.strerror(spoofed.error)}); choose another address",
        )
    if spoofed.error == errno.ECONNREFUSED:
        return SERVER, f"server: {where} refused the connection; the path works, but nothing listens on that port"
    if lookup != "local":
        return LOCAL_DELIVERY, (
            f"local delivery on this host: the kernel would not accept replies of {target.address} to {source} "
            f"(route lookup: {lookup}; expected: local); run `l4proxy keep --once` on this host, or the forwarder role"
        )
    if own is not None and own.error in (0, errno.ECONNREFUSED):
        return RETURN_PATH, (
            f"return path on the backend: {where} answers this host's own address, but its replies to {source} do not "
            "arrive here; run `l4proxy doctor` on the backend to find the cause"
        )
    reason = os.strerror((own or spoofed).error)
    return (
        BACKEND,
        f"backend: {where} does not answer this host at all ({reason}); check that it is up and that no firewall drops "
        "the connection",
    )


def probe(target: Target, timeout: float = DEFAULT_TIMEOUT) -> Verdict:
    """Probe one target.

    :param timeout: seconds to wait for each handshake.
    """
    spoofed = spoofed_attempt(target, timeout)
    verdict = diagnose(target, spoofed)
    if verdict.step != BACKEND:
        return verdict
    return diagnose(target, spoofed, reply_lookup(target), own_attempt(target, timeout))


def probe_all(targets: Sequence[Target], timeout: float = DEFAULT_TIMEOUT) -> list[Verdict]:
    """Probe many targets in parallel; return the verdicts in the order of the targets."""
    with ThreadPoolExecutor(max_workers=MAX_PARALLEL) as pool:
        return list(pool.map(lambda target: probe(target, timeout), targets))
