# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every default, bound and choice of the config: one line for each key. Durations are seconds.

docs/docsite/rst/services.rst and health.rst show them to users; a test compares them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..._shared.families import IPV4, IPV6


class Range(NamedTuple):
    """The lowest and the highest value of a key, and its default (None: no limit, or derived)."""

    low: float
    high: float
    default: Any


WEEK = 7 * 86400

# A service. Of choices the first is the default.
PROTOCOLS = ("tcp", "udp")
DATAPATHS = FORWARDER, KERNEL = "forwarder", "kernel"
BALANCES = ("round_robin", "least_connections", "source_hash", "random")
HASH_BALANCE_FACTOR = Range(101, 1000, None)  # percent of the average number of connections
ON_ALL_DOWN = ("refuse", "try_all")
ON_DOWN = ("keep", "reset")
SERVICE_LOGS = ("all", "errors", "none")
LOG_EVERY = Range(0, 86400, 0)  # seconds; 0: no lines about open sessions
SOURCE_PORTS = ("any", "keep")
SOURCE_FALLBACKS = ("refuse", "own")
CONNECT_TIMEOUT = Range(0.1, 600, 1.0)  # for one backend
CONNECT_DEADLINE = Range(0.1, 600, 5.0)  # for all attempts together
RETRIES = Range(0, 64, 2)
BACKLOG = Range(1, 65535, 4096)  # the kernel caps it at net.core.somaxconn, whose default is 4096 since Linux 5.4
IDLE_TIMEOUT = Range(0, WEEK, 3600.0)
UDP_IDLE_TIMEOUT = Range(0, WEEK, 60.0)  # conntrack and most proxies forget an answered UDP flow after 1-2 minutes
HALF_CLOSED_TIMEOUT = Range(0, WEEK, 300.0)
TCP_USER_TIMEOUT = Range(0, WEEK, 0.0)  # 0: the kernel's own
KEEPALIVE = Range(0, 32767, 60)  # MAX_TCP_KEEPIDLE in linux/net/tcp.h
PROXY_TIMEOUT = Range(0.1, 600, 5.0)
SLOW_START = Range(0, 3600, 0.0)

# The limits of a service; 0: no limit.
AT_LIMIT = ("pause", "refuse")
CONNECTIONS = Range(0, 10_000_000, 0)
RATE = Range(0, 1_000_000, 0.0)  # new connections per second
MIN_RATE = 1e-6  # one in eleven days; a client's next connection is timed in microseconds

# A backend.
PROXY_VERSIONS = ("v1", "v2")
WEIGHT = Range(1, 65535, 1)
PRIORITY = Range(0, 255, 0)
MAX_CONNECTIONS = Range(1, CONNECTIONS.high, None)

# Health checks.
HEALTH_INTERVAL = Range(0.1, 3600, 2.0)
HEALTH_TIMEOUT = Range(0.05, 600, 1.0)
HEALTH_RISE = Range(1, 100, 2)
HEALTH_FALL = Range(1, 100, 3)
HEALTH_PORT = Range(1, 65535, None)
AGENT_INTERVAL = Range(0.1, 3600, None)  # None: that of the health checks
MAX_OUT = Range(0, 100, None)  # percent
FLAP_PAUSE = Range(0, 86400, None)  # None and 0: no pauses
FLAP_PAUSE_MAX = Range(1, 86400, 300.0)
MAX_EXCHANGE = 512  # characters of request, expect, expect_regex and the path of an HTTP request
EXPECT_WITHIN = Range(1, 65536, 4096)  # bytes of an answer that expect_regex is searched in
MAX_HOST = 260  # characters of a host name of 253, a colon and a port
MAX_PATH = 4096  # bytes; PATH_MAX
HTTP_METHODS = ("GET", "HEAD", "OPTIONS")
HTTP_STATUS = ("200-399",)
# The source of a spoofed probe, by proxy id: documentation ranges (RFC 5737, RFC 3849), so no client has it.
HEALTH_SOURCE = {IPV4: "198.51.100.{0}", IPV6: "2001:db8:ffff::{0}"}

# The forwarder.
DRAIN_TIMEOUT = Range(0, 86400, None)  # None: no deadline after a reload or a restart, else STOP_TIMEOUT
STOP_TIMEOUT = 30.0  # for the connections of a stopped forwarder, and of a service or backend that the config lost
DRAIN_MEMORY = Range(1, 1 << 20, 1024)  # MiB, of all workers that drain
HASH_TABLES = ("ring", "maglev")  # of source_hash, the same in the whole fleet
MAX_DENY_FILES = 32
WORKERS = Range(0, 64, 0)  # 0: one per core
LOG_FORMATS = ("json", "logfmt")
LOG_LEVELS = ("debug", "info", "warning", "error")
DEFAULT_LOG_LEVEL = "info"
HEALTHY_NEEDS = NONE, ANY, EACH = "none", "any", "each"  # services that need a backend for this proxy to be healthy
MIN_SOURCE_PORTS = 64
MAX_SOCKET_PATH = 100  # bytes; sun_path has 108 (unix(7)), and the socket is first made under a longer name

# Sizes. Each listener and backend is a socket in every worker and some 2 kB of the status: with so many, the forwarder
# starts within seconds on two cores.
MAX_LISTENERS = 16384
MAX_BACKENDS = 16384
MAX_PORT_RANGE = 1024  # ports of one listen entry
MAX_NAME = 80  # characters of a backend's name: a host name of 63, a colon and a port, or an IPv6 address
