# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Health checks of applications: the examples of health.rst with real servers, and servers that fail in many ways."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from tests.docs import pages
from tests.lab import daemons
from tests.lab.netns import NamespaceLab
from tests.support.forwarding import Forwarder, make_config, make_service
from tests.support.waiting import eventually, in_threads

PLACES = 10  # for clients of MySQL and SSH; MySQL takes no lower number
QUICK = {"interval": 0.3, "timeout": 0.25, "rise": 1, "fall": 2}
EXAMPLES = {
    name: yaml.safe_load(text)
    for name, text in pages.literals(pages.REPOSITORY / "docs/docsite/rst/health.rst", "Examples").items()
}


# -- real servers ----------------------------------------------------------------------------------------------------


def redis_cli(server: daemons.Redis, *arguments: str) -> None:
    server.host.run(["redis-cli", "-h", server.host.ipv4, "-p", str(server.port), *arguments])


@contextlib.contextmanager
def unavailable(server: daemons.Nginx):
    """nginx answers 503."""
    server.broken.touch()
    try:
        yield
    finally:
        server.broken.unlink()


@contextlib.contextmanager
def password(server: daemons.Redis):
    """redis answers -NOAUTH."""
    redis_cli(server, "config", "set", "requirepass", "secret")
    try:
        yield
    finally:
        redis_cli(server, "-a", "secret", "config", "set", "requirepass", "")


@contextlib.contextmanager
def replica(server: daemons.Redis):
    """redis answers, and copies another server."""
    redis_cli(server, "replicaof", "192.0.2.1", "6379")
    try:
        yield
    finally:
        redis_cli(server, "replicaof", "no", "one")


@contextlib.contextmanager
def nameless(server: daemons.Dnsmasq):
    """dnsmasq has no names: it answers REFUSED."""
    records, server.argv = server.argv, [word for word in server.argv if not word.startswith("--host-record")]
    with server.stopped():
        pass
    try:
        yield
    finally:
        server.argv = records
        with server.stopped():
            pass


@contextlib.contextmanager
def full(server: daemons.Daemon):
    """The server has no place for another client."""
    with ExitStack() as clients, server.host.inside():
        for _client in range(3 * PLACES):
            sock = clients.enter_context(socket.create_connection((server.host.ipv4, server.port)))
            assert sock.recv(1)
            time.sleep(0.03)  # a health check may have a place, for a moment
        yield


@contextlib.contextmanager
def replaced(server: daemons.PostgreSQL):
    """Another server has its port: nginx, which answers 400."""
    rule = f"type nat hook prerouting priority dstnat\ntcp dport {server.port} redirect to :{daemons.Nginx.port}"
    server.host.run(["nft", "-f", "-"], input=f"table inet replaced {{\nchain in {{\n{rule}\n}}\n}}\n")
    try:
        yield
    finally:
        server.host.run(["nft", "delete", "table", "inet", "replaced"])


@dataclass(frozen=True)
class Server:
    """A real server: how it is made, its own way to answer wrongly, and the examples that check it."""

    make: Callable[[NamespaceLab], daemons.Daemon]
    wrong: Callable[[Any], AbstractContextManager]
    examples: dict[str, int]  # the port of each
    program: str = ""  # one that bootstrap.sh leaves out where another mail or MySQL server is installed


RECORDS = {"example.org": ("192.0.2.1", "2001:db8:53::1")}
SERVERS = (
    Server(lambda lab: daemons.Nginx(lab, "b"), unavailable, {"HTTP": 8081, "HTTPS": 8443}),
    Server(lambda lab: daemons.OpenSSH(lab, "b", PLACES), full, {"SSH": 2222}),
    Server(lambda lab: daemons.OpenSMTPD(lab, "b"), daemons.OpenSMTPD.paused, {"SMTP": 2525}, "smtpd"),
    Server(lambda lab: daemons.Redis(lab, "b"), password, {"Redis": 6379}),
    Server(lambda lab: daemons.Redis(lab, "c"), replica, {"Redis, primary only": 6379}),
    Server(lambda lab: daemons.PostgreSQL(lab, "b", []), replaced, {"PostgreSQL": 5432}),
    Server(lambda lab: daemons.MariaDB(lab, "b", PLACES), full, {"MySQL, MariaDB": 3306}, "mariadbd"),
    Server(lambda lab: daemons.Dnsmasq(lab, "b", RECORDS, {}), nameless, {"DNS": 5353}),
)
FAULTS = {
    "wrong": lambda server, daemon: server.wrong(daemon),
    "frozen": lambda _server, daemon: daemon.frozen(),  # the kernel still accepts connections
    "stopped": lambda _server, daemon: daemon.stopped(),
}


@pytest.fixture(scope="module")
def real(lab):
    """[(server, its process)]."""
    found = [server for server in SERVERS if not server.program or shutil.which(server.program)]
    started = in_threads(lambda index: found[index].make(lab).start(), len(found))
    return list(zip(found, started))


@pytest.fixture(scope="module")
def forwarder(lab, real):
    """One service for each example, one that verifies the certificate, and two whose nginx needs PROXY headers."""
    rows = [(EXAMPLES[name], name, daemon, port) for server, daemon in real for name, port in server.examples.items()]
    nginx = real[0][1]
    verified = {"tls": {"server_name": "b", "verify": True, "ca_file": str(nginx.certificate)}, **EXAMPLES["HTTP"]}
    rows += [(verified, "verified", nginx, nginx.tls_port), *[(EXAMPLES["HTTP"], "PROXY", nginx, nginx.proxy_port)] * 2]
    services = []
    for number, (health, name, daemon, port) in enumerate(rows):
        label = f"s{number}-{name.split(',')[0]}"
        options = {"backends": [daemon.host.name], "protocol": "udp" if name == "DNS" else "tcp"}
        services.append(make_service(lab, label, 20000 + number, port, **options, health={**health, **QUICK}))
    for service, version in zip(services[-2:], ("v1", "v2")):
        service["backends"][0]["send_proxy"] = version
    with Forwarder(lab, make_config(*services)) as forwarder:
        yield forwarder


def wait_for_all(forwarder, expected):
    """Wait until the backend of every service has this state, over IPv4 and IPv6."""

    def others():
        return {
            (service["name"], family): target["state"]
            for service in forwarder.status()["services"]
            for family, target in service["backends"][0]["families"].items()
            if target["state"] != expected
        }

    eventually(lambda: not others(), f"all are {expected}", lambda: f"{others()}\n{forwarder.show()}", interval=0.1)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_example_is_up_while_the_server_works_and_down_while_it_does_not(forwarder, real, fault):
    """In both families."""
    assert {name for server in SERVERS for name in server.examples} == set(EXAMPLES)
    wait_for_all(forwarder, "up")
    with ExitStack() as faults:
        for server, daemon in real:
            faults.enter_context(FAULTS[fault](server, daemon))
        wait_for_all(forwarder, "down")
    wait_for_all(forwarder, "up")
