# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exchange of a health probe inside TLS. No I/O: the bytes go through memory.

Only the checker of a config with ``health.tls`` imports this file, and with it ``ssl``. Sessions are not resumed:
Python copies a session to get it (170 us) and to use it (200 us), which costs more than the handshake saves. And a
resumed session has no certificate, so one that has expired would go unnoticed.
"""

from __future__ import annotations

import contextlib
import functools
import ssl

from ..counters.probe_results import CERTIFICATE, CLOSED, NOT_TLS, TLS_FAILED, TLS_REFUSED, TLS_UNFINISHED

READ = 16384  # the most that one record has

# Reasons of OpenSSL for an answer that is no TLS.
_NOT_TLS = {"WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}


@functools.cache
def context(verify, ca_file):
    """Return the SSLContext of all checks with these options; raise OSError (ssl.SSLError is one)."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    elif ca_file is None:
        made.load_default_certs()
    else:
        made.load_verify_locations(ca_file)
    return made


class TlsExchange:
    """An Exchange (``inner``) inside TLS; None: the handshake is enough. ``header`` is sent before, in the clear.

    ``options`` is a HealthTls.
    """

    def __init__(self, options, inner, header):
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._inner = inner
        made = context(options.verify, options.ca_file)
        name = options.server_name.rstrip(".") if options.server_name else None
        self._tls = made.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._shaken = False
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        self.outgoing = header + self._outgoing.read()

    def received(self, data):
        """Take what the server sends (b"": it has closed); return the result, None for not yet."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        try:
            return self._advance()
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLCertVerificationError as error:
            return CERTIFICATE + error.verify_code
        except ssl.SSLError as error:
            return _meaning(error)
        finally:
            self.outgoing += self._outgoing.read()

    def _advance(self):
        if not self._shaken:
            self._tls.do_handshake()
            self._shaken = True
            if self._inner is None:
                return 0
            if self._inner.outgoing:
                self._tls.write(self._inner.outgoing)
        result = None
        while result is None:
            try:
                data = self._tls.read(READ)
            except ssl.SSLError as error:
                if not _is_end(error):
                    raise
                data = b""
            result = self._inner.received(data)
            if not data:
                break
        return result

    def new_turn(self):
        """Return the result that could not be found in the turn before, None for not yet."""
        return self._inner.new_turn() if self._inner is not None else None

    def expired(self):
        """Return the result when the time is over; None if the answer is here and still has to be judged."""
        return self._inner.expired() if self._shaken else TLS_UNFINISHED

    def farewell(self):
        """Return the last bytes to send before the connection is closed: close_notify."""
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        return self._outgoing.read()


def _is_end(error):
    """Return whether an SSLError means that the server has closed; Python 3.9 has no SSLEOFError for OpenSSL 3."""
    ends = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
    return isinstance(error, ends) or error.reason == "UNEXPECTED_EOF_WHILE_READING"


def _meaning(error):
    """Return the result for an SSLError in a handshake, or after it."""
    reason = error.reason or ""
    if _is_end(error):
        return CLOSED
    if reason in _NOT_TLS:
        return NOT_TLS
    return TLS_REFUSED if reason.startswith(("SSLV3_ALERT", "TLSV1")) else TLS_FAILED  # names of alerts
