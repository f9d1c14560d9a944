# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real servers behind the forwarder: they see the client's address, and their data arrives unchanged."""

from __future__ import annotations

import base64
import filecmp
import ftplib
import random
import re
import socket
import statistics
import struct
import subprocess
import time

import pytest

from tests.kernel.forwarder.ftp_server import CONTROL, DATA, Server
from tests.lab import daemons, netns
from tests.support import tcp, udp
from tests.support.forwarding import Forwarder, make_config, make_service
from tests.support.waiting import PATIENCE, eventually, in_threads

FAMILIES = ("ipv4", "ipv6")
SQL, SSH, CACHE, DNS = range(7600, 7604)
MIB = 1 << 20
DELAYED_ACK = 0.040  # seconds: TCP_DELACK_MIN in include/net/tcp.h


def document(lab):
    servers = {
        "sql": (SQL, daemons.PostgreSQL),
        "ssh": (SSH, daemons.OpenSSH),
        "cache": (CACHE, daemons.Redis),
        "dns": (DNS, daemons.Dnsmasq),
    }
    keep = {"backends": ["b"], "source_port": "keep"}
    services = [make_service(lab, name, port, cls.port, **keep) for name, (port, cls) in servers.items()]
    services.append(make_service(lab, "dns-udp", DNS, daemons.Dnsmasq.port, protocol="udp", **keep))
    return make_config(*services, workers=2)


# -- PostgreSQL ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sql(lab):
    client = lab["client"]
    return daemons.PostgreSQL(lab, "b", [f"{client.ipv4}/32", f"{client.ipv6}/128"]).start()


def psql(address, port, *arguments):
    """The command line of psql; it ends at the first error."""
    where = ["-h", address, "-p", str(port), "-U", "postgres", "-d", "postgres"]
    return ["psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", *where, *arguments]


def test_postgresql_admits_by_the_clients_address(lab, forwarder, sql, family):
    proxy, client = getattr(lab["a"], family), getattr(lab["client"], family)
    query = ["-c", "select host(inet_client_addr())"]
    assert lab["client"].run(psql(proxy, SQL, *query)).stdout.strip() == client
    other = lab["d"].run(psql(proxy, SQL, *query), check=False)
    assert other.returncode == 2
    assert f'no pg_hba.conf entry for host "{getattr(lab["d"], family)}"' in other.stderr
    # Control: a connection from the forwarder's own address.
    own = lab["a"].run(psql(getattr(lab["b"], family), sql.port, *query), check=False)
    assert f'no pg_hba.conf entry for host "{proxy}"' in own.stderr


def test_postgresql_has_20_clients_at_once(lab, forwarder, sql, family):
    proxy, client = getattr(lab["a"], family), getattr(lab["client"], family)
    argv = lab["client"].argv(psql(proxy, SQL))
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    clients = [subprocess.Popen(argv, text=True, **streams) for _client in range(20)]
    connected = f"select count(distinct client_port) from pg_stat_activity where client_addr = '{client}'"
    eventually(lambda: sql.ask(connected) == "20", "all are connected", forwarder.show)
    for number, process in enumerate(clients):
        process.stdin.write(f"select {number} + count(*) from generate_series(1, 100000);\n")
        process.stdin.flush()
    outcomes = [process.communicate(timeout=PATIENCE) for process in clients]
    assert outcomes == [(f"{100_000 + number}\n", "") for number in range(20)]


@pytest.fixture(scope="module")
def table(lab):
    """A file of 100 MB: 52,632 rows of 1,899 characters, which PostgreSQL neither compresses nor moves elsewhere."""
    row, size = 1899, 100_000_000
    text = base64.b64encode(random.Random(7).randbytes(size * 3 // 4 + 3))
    path = lab.tmp / "table"
    path.write_bytes(b"".join(text[start : start + row] + b"\n" for start in range(0, size, row)))
    assert path.stat().st_size >= size
    return path


def test_postgresql_copies_100_mb_in_and_out(lab, forwarder, sql, table, family):
    proxy, back = getattr(lab["a"], family), lab.tmp / f"back-{family}"
    for command in (
        "create unlogged table bulk (line text)",
        f"\\copy bulk from '{table}'",
        f"\\copy bulk to '{back}'",
        "drop table bulk",
    ):
        lab["client"].run(psql(proxy, SQL, "-c", command), timeout=60)
    assert filecmp.cmp(table, back, shallow=False)
    back.unlink()


# -- OpenSSH ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ssh(lab):
    return daemons.OpenSSH(lab, "b").start()


def test_openssh_sees_the_client_and_echoes_what_it_was_sent(lab, forwarder, ssh, family):
    proxy, client = getattr(lab["a"], family), getattr(lab["client"], family)
    found = lab["client"].run(ssh.command(proxy, SSH, "echo $SSH_CONNECTION")).stdout.split()
    assert (found[0], found[2]) == (client, getattr(lab["b"], family))
    data = random.Random(8).randbytes(20 * MIB)
    argv = lab["client"].argv(ssh.command(proxy, SSH, "cat"))
    done = subprocess.run(argv, input=data, capture_output=True, timeout=60, check=True)
    assert done.stdout == data


def banner_after(lab, host, address, port, quick=True):
    """Seconds until the first line of a server that speaks first."""
    with lab[host].inside():
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    with sock:
        sock.settimeout(PATIENCE)
        if not quick:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
        begun = time.monotonic()
        sock.connect((address, port))
        assert sock.recv(100).startswith(b"SSH-2.0-")
        return time.monotonic() - begun


def test_openssh_speaks_first_and_is_heard_at_once(lab, forwarder, ssh, family):
    """If the forwarder delayed the last ACK of its handshake, sshd would accept only later."""
    proxy, server = getattr(lab["a"], family), getattr(lab["b"], family)
    direct, through, held_back = [], [], []
    for _connect in range(11):  # alternating, so that all three have the same load
        direct.append(banner_after(lab, "a", server, ssh.port))
        through.append(banner_after(lab, "client", proxy, SSH))
        held_back.append(banner_after(lab, "a", server, ssh.port, quick=False))
    base, shown = statistics.median(direct), f"direct {direct}\nthrough {through}\nheld back {held_back}"
    assert statistics.median(through) < base + DELAYED_ACK / 2, shown
    assert statistics.median(held_back) > base + DELAYED_ACK / 2, f"the control shows nothing\n{shown}"


# -- redis -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis(lab):
    return daemons.Redis(lab, "b").start()


def command(*words):
    """A command as redis reads it (RESP, https://redis.io/docs/latest/develop/reference/protocol-spec/)."""
    parts = [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
    return b"*%d\r\n" % len(words) + b"".join(parts)


def bulk(stream):
    """One bulk string of an answer."""
    size = int(stream.readline()[1:])
    return stream.read(size + 2)[:-2]


def test_redis_sees_the_client_and_answers_a_pipeline_in_order(lab, forwarder, redis, family):
    count = 20_000
    with tcp.connect(lab, getattr(lab["a"], family), CACHE) as sock, sock.makefile("rb") as answers:
        sock.sendall(command(b"CLIENT", b"INFO"))
        client = re.search(rb" addr=(\S+) ", bulk(answers))[1].decode()
        address, port = sock.getsockname()[:2]
        assert re.fullmatch(rf"\[?{address}\]?:{port}", client), client
        questions = b"".join(command(b"ECHO", b"%d" % number) for number in range(count))
        _told, found = in_threads(
            lambda index: sock.sendall(questions) if index == 0 else [bulk(answers) for _answer in range(count)], 2
        )
        assert found == [b"%d" % number for number in range(count)]


def test_redis_returns_a_large_value_unchanged(lab, forwarder, redis, family):
    value = random.Random(9).randbytes(32 * MIB)
    with tcp.connect(lab, getattr(lab["a"], family), CACHE) as sock, sock.makefile("rb") as answers:
        sock.sendall(command(b"SET", b"large", value))
        assert answers.readline() == b"+OK\r\n"
        sock.sendall(command(b"GET", b"large"))
        assert bulk(answers) == value
        sock.sendall(command(b"DEL", b"large"))


# -- dnsmasq ---------------------------------------------------------------------------------------------------------

A, TXT, AAAA = 1, 16, 28  # RFC 1035, 3.2.2; RFC 3596, 2.1
RECORDS = {"one.test": ("192.0.2.1", "2001:db8:53::1"), "two.test": ("192.0.2.2", "2001:db8:53::2")}
TEXTS = {"text.test": "x" * 250}
QUESTIONS = [("one.test", A), ("two.test", AAAA), ("text.test", TXT), ("none.test", A)]


@pytest.fixture(scope="module")
def dns(lab):
    return daemons.Dnsmasq(lab, "b", RECORDS, TEXTS).start()


def query(number, name, kind):
    """A query of id ``number`` (RFC 1035, 4)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)


def answers(sock, count):
    """``count`` answers of one connection, by id: they may come in any order (RFC 7766, 7)."""
    found = {}
    with sock.makefile("rb") as stream:
        for _answer in range(count):
            data = stream.read(struct.unpack("!H", stream.read(2))[0])
            found[struct.unpack("!H", data[:2])[0]] = data
    return found


def test_dnsmasq_answers_over_tcp_and_udp_as_it_does_directly(lab, forwarder, dns, family):
    client = getattr(lab["client"], family)
    queries = [query(number, *one) for number, one in enumerate(QUESTIONS * 25)]
    found = {}
    for host, address, port in (("client", lab["a"], DNS), ("d", lab["b"], dns.port)):
        to = (getattr(address, family), port)
        with tcp.connect(lab, *to, host=host) as stream, udp.client(lab, to[0], host=host) as sock:
            stream.sendall(b"".join(struct.pack("!H", len(one)) + one for one in queries))  # RFC 1035, 4.2.2
            found[host, "tcp"] = answers(stream, 100)
            found[host, "udp"] = {number: udp.exchange(sock, queries[number], to)[0] for number in range(20)}
    for protocol, count in (("tcp", 25), ("udp", 5)):
        assert found["client", protocol] == found["d", protocol]
        assert len(found["client", protocol]) == 4 * count
        assert socket.inet_aton(RECORDS["one.test"][0]) in found["client", protocol][0]
        assert TEXTS["text.test"].encode() in found["client", protocol][2]
    eventually(lambda: dns.wait_said(r"query\[A\] one\.test from (\S+)").count(client) >= 30, "all are logged")
    assert getattr(lab["a"], family) not in dns.wait_said(r"query\[A\] one\.test from (\S+)")


# -- FTP and TFTP: ports that are open while they are used ------------------------------------------------------------

ON_DEMAND = {"interval": 0.5, "timeout": 0.4, "rise": 1, "fall": 2}


def states(forwarder):
    """The state of every backend and family of every service."""
    found = [backend for service in forwarder.status()["services"] for backend in service["backends"]]
    return {family["state"] for one in found for family in one["families"].values()}


def ftp_services(lab, **health):
    """The two services of the example in services.rst."""
    both = {"backends": ["b", "c"], "balance": "source_hash"}
    control = make_service(lab, "ftp", CONTROL, CONTROL, **both, health=ON_DEMAND)
    ports = f"{DATA[0]}-{DATA[-1]}"
    return control, make_service(lab, "ftp-data", ports, ports, **both, health={**ON_DEMAND, **health})


@pytest.fixture
def ftp(lab):
    servers = {name: Server(lab, name) for name in ("b", "c")}
    yield servers
    for server in servers.values():
        server.stop()


def test_passive_ftp_works_with_health_checks_of_the_control_port(lab, ftp, family):
    """Both services see the client, on one backend; if its server stops, both are down."""
    client = getattr(lab["client"], family)
    with Forwarder(lab, make_config(*ftp_services(lab, port=CONTROL))) as forwarder:
        eventually(lambda: states(forwarder) == {"up"}, "all are up", forwarder.show)
        for _download in range(3):
            with lab["client"].inside(), ftplib.FTP(timeout=PATIENCE) as session:
                session.trust_server_pasv_ipv4_address = True
                session.connect(getattr(lab["a"], family), CONTROL)
                session.login()
                parts = []
                session.retrbinary("RETR file", parts.append)
            host, control, data = b"".join(parts).decode().split()
            assert (control, data) == (client, client)
            assert host in ftp
        assert states(forwarder) == {"up"}
        for server in ftp.values():
            server.stop()
        eventually(lambda: states(forwarder) == {"down"}, "both services know", forwarder.show)


@pytest.mark.ipv4_only
def test_without_health_port_the_data_ports_of_ftp_are_down(lab, ftp):
    """The control: nothing listens on data ports between transfers. Without health checks they count as up."""
    with Forwarder(lab, make_config(*ftp_services(lab))) as forwarder:
        eventually(lambda: states(forwarder) == {"up", "down"}, "the data ports are closed", forwarder.show)
        forwarder.configure(make_config(*ftp_services(lab, enabled=False)))
        assert forwarder.reload().returncode == 0
        eventually(lambda: states(forwarder) == {"up", "unknown"}, "nobody asks", forwarder.show)


TFTP = 69


@pytest.fixture
def tftp(lab, tmp_path):
    """dnsmasq on b, which answers from port 69, with a file of two and a half blocks."""
    (tmp_path / "file").write_bytes(bytes(range(256)) * 5)
    tmp_path.chmod(0o755)
    options = ["--enable-tftp", f"--tftp-root={tmp_path}", "--tftp-single-port", "--port=0", "--user=root"]
    options += ["--conf-file=", "--log-facility=-", "--pid-file=", "--keep-in-foreground"]
    server = lab["b"].spawn(["dnsmasq", *options])
    eventually(lambda: "TFTP root" in server.log.read_text(encoding="utf-8"), "dnsmasq serves")
    yield server
    netns.stop(server)


def test_tftp_works_with_a_single_port_server(lab, tftp, family):
    """Health checks request a missing file; a download uses a single session."""
    health = {**ON_DEMAND, "request": "\0\1no such file\0octet\0", "expect": "\0\5"}
    service = make_service(lab, "tftp", TFTP, TFTP, backends=["b"], protocol="udp", source_port="keep", health=health)
    to = (getattr(lab["a"], family), TFTP)
    with Forwarder(lab, make_config(service)) as forwarder, udp.client(lab, to[0]) as sock:
        eventually(lambda: states(forwarder) == {"up"}, "it is up", forwarder.show)
        got, block = b"", b"\0\1file\0octet\0"
        for number in range(1, 4):
            answer, source = udp.exchange(sock, block, to)
            assert source[:2] == to
            assert struct.unpack("!2H", answer[:4]) == (3, number)  # DATA (RFC 1350, 5)
            got, block = got + answer[4:], struct.pack("!2H", 4, number)  # ACK
        sock.sendto(block, to)
        assert got == bytes(range(256)) * 5
        client = getattr(lab["client"], family)
        said = f"/file to {client}"  # "sent …", once the last block was acknowledged
        eventually(lambda: said in tftp.log.read_text(encoding="utf-8"), "it names the client", forwarder.show)
