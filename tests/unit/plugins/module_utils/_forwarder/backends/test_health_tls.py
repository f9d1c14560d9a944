# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Exchanges inside TLS, with a server in memory."""

from __future__ import annotations

import contextlib
import datetime
import os
import ssl
import subprocess
import sys

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends.health_exchange import (
    Beginning,
    Exchange,
    any_answer,
)
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends.health_tls import TlsExchange
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.health_exchange import HealthTls
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters import probe_results
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.counters.probe_results import (
    CLOSED,
    NO_ANSWER,
    NOT_TLS,
    TLS_REFUSED,
    TLS_UNFINISHED,
    UNEXPECTED,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.tables import rows

NAME = "b.example"


def certificate(folder, name, days):
    """Write a self-signed certificate and its key, which ends in so many days; return its path."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - datetime.timedelta(9)).not_valid_after(now + datetime.timedelta(days))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False).sign(key, hashes.SHA256())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path = folder / f"{name}{days}.pem"
    path.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return path


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    return certificate(tmp_path_factory.mktemp("tls"), NAME, 9)


@pytest.fixture(scope="module")
def expired(tmp_path_factory):
    return certificate(tmp_path_factory.mktemp("tls"), NAME, -1)


def server_context(path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


class Server:
    """Takes what a probe sends; after the handshake it sends ``says`` at the first byte, or closes (None)."""

    def __init__(self, context, says=b""):
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._says = says
        self.heard = b""
        self.closed = self._shaken = False

    def answer(self, data):
        """Return what the server sends for these bytes."""
        self._in.write(data)
        with contextlib.suppress(ssl.SSLError):
            self._go_on()
        return self._out.read()

    def _go_on(self):
        if not self._shaken:
            self.tls.do_handshake()
            self._shaken = True
            if self._says:
                self.tls.write(self._says)
            if self._says is None:
                self.tls.unwrap()
        while not self.closed:
            data = self.tls.read()
            self.closed = not data
            self.heard += data


def run(exchange, server):
    """Pass bytes until there is a result, or nothing to pass; the farewell reaches the server."""
    result = None
    for _step in range(10):
        sent, exchange.outgoing = exchange.outgoing, b""
        reply = server.answer(sent)
        if not reply or result is not None:
            break
        result = exchange.received(reply)
        if result is not None:
            exchange.outgoing += exchange.farewell()
    return result


def probe(options, inner=None):
    return TlsExchange(options, inner, b"")


def hello():
    return Exchange(b"hello", Beginning(b"220"))


# What the server says inside TLS, the exchange, and the result.
TEST_INSIDE = [
    ("the handshake is enough", b"", None, 0),
    ("expected", b"220 b", hello, 0),
    ("unexpected", b"554 b", hello, UNEXPECTED),
    ("not yet", b"2", hello, None),
    ("nothing", b"", hello, None),
    ("closed by close_notify", None, hello, CLOSED),
]


@pytest.mark.parametrize(("says", "inner", "result"), **rows(TEST_INSIDE))
def test_an_exchange_runs_inside_tls(valid, says, inner, result):
    server, exchange = Server(server_context(valid), says), probe(HealthTls(), inner and inner())
    assert run(exchange, server) == result
    if says is not None:
        assert server.heard == (b"hello" if inner else b"")
        assert server.closed == (result is not None), "close_notify was sent"


# Options beside the path of the CA file, whether it is the valid certificate, and the result.
TEST_VERIFIED = [
    ("valid", {}, "valid", 0),
    ("expired", {}, "expired", "certificate has expired"),
    ("another name", {"server_name": "c.example"}, "valid", "certificate is for another name"),
    ("an address", {"server_name": "192.0.2.1"}, "valid", "certificate is for another address"),
    ("unknown authority", {"ca_file": None}, "valid", "certificate is self-signed"),
    ("not verified", {"ca_file": None, "verify": False}, "expired", 0),
]


@pytest.mark.parametrize(("options", "which", "result"), **rows(TEST_VERIFIED))
def test_the_certificate_is_verified_on_demand(valid, expired, options, which, result):
    path = {"valid": valid, "expired": expired}[which]
    given_options = {"server_name": NAME, "verify": True, "ca_file": str(path), **options}
    found = run(probe(HealthTls(**given_options)), Server(server_context(path)))
    assert (probe_results.name(found) if found else found) == result


def test_the_server_gets_the_name_and_may_refuse(valid):
    context = server_context(valid)
    names = []
    context.sni_callback = lambda _tls, name, _context: names.append(name)
    run(probe(HealthTls(server_name=f"{NAME}.")), Server(context))
    assert names == [NAME]
    context.sni_callback = lambda *_arguments: ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
    server, exchange = Server(context), probe(HealthTls(server_name=NAME))
    assert exchange.received(server.answer(exchange.outgoing)) == TLS_REFUSED


def test_a_tls_handshake_that_does_not_finish(valid):
    exchange = probe(HealthTls(), hello())
    assert exchange.expired() == TLS_UNFINISHED
    part = Server(server_context(valid)).answer(exchange.outgoing)[:100]
    assert (exchange.received(part), exchange.expired()) == (None, TLS_UNFINISHED)
    assert exchange.received(b"") == CLOSED
    exchange = probe(HealthTls(), hello())
    run(exchange, Server(server_context(valid)))
    assert exchange.expired() == NO_ANSWER


@pytest.mark.parametrize("data", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 100])
def test_an_answer_that_is_no_tls(data):
    assert probe(HealthTls()).received(data) == NOT_TLS


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.integers(0, 3000), st.binary(max_size=60), st.binary(max_size=60))
def test_garbage_ends_the_handshake_and_nothing_else(valid, keep, middle, rest):
    """Bytes of the server are replaced from some place on."""
    exchange = probe(HealthTls(), Exchange(b"", any_answer))
    reply = Server(server_context(valid)).answer(exchange.outgoing)
    result = None
    for data in (*filter(None, (reply[:keep] + middle, rest)), b""):
        result = exchange.received(data) if result is None else result
    assert result > probe_results.FIRST
    assert probe_results.name(result)
    exchange.farewell()


def test_ssl_is_imported_only_for_checks_with_tls():
    """In the checker's own module and all that it imports."""
    package = "ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.backends"
    code = f"import sys; import {package}.health_checker as h; raise SystemExit('ssl' in sys.modules)"
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=paths, check=False).returncode == 0
