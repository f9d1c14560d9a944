# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Results of health probes as integers, for cells of the shared memory, and as text, for people.

0 is a good answer. Below FIRST a number is an errno of the connection. A version that does not know a number shows it
as a timeout or as an unknown error, so new ones may be added; a number must not get another meaning.
"""

from __future__ import annotations

import errno

FIRST = 10_000  # above every errno
CLOSED = FIRST + 1
UNEXPECTED = FIRST + 2
NO_ANSWER = FIRST + 3
INCOMPLETE = FIRST + 4
NOT_HTTP = FIRST + 5
REGEX_TOO_SLOW = FIRST + 6
NOT_TLS = FIRST + 10
TLS_FAILED = FIRST + 11
TLS_UNFINISHED = FIRST + 12
TLS_REFUSED = FIRST + 13
HTTP_STATUS = 11_000  # plus the status code
CERTIFICATE = 12_000  # plus the code of OpenSSL, X509_V_ERR_... in x509_vfy.h

_TEXTS = {
    CLOSED: "closed without an answer",
    UNEXPECTED: "unexpected answer",
    NO_ANSWER: "connected, but no answer in time",
    INCOMPLETE: "no expected answer in time",
    NOT_HTTP: "the answer is not HTTP",
    REGEX_TOO_SLOW: "expect_regex takes too long",
    NOT_TLS: "the answer is not TLS",
    TLS_FAILED: "TLS handshake failed",
    TLS_UNFINISHED: "TLS handshake not finished in time",
    TLS_REFUSED: "TLS handshake refused by the server",
    CERTIFICATE + 9: "certificate is not yet valid",
    CERTIFICATE + 10: "certificate has expired",
    CERTIFICATE + 18: "certificate is self-signed",
    CERTIFICATE + 19: "certificate's authority is not trusted",
    CERTIFICATE + 20: "certificate's authority is not trusted",
    CERTIFICATE + 21: "certificate's authority is not trusted",
    CERTIFICATE + 62: "certificate is for another name",
    CERTIFICATE + 64: "certificate is for another address",
}


def name(number):
    """Return the name of an errno, or what a result above FIRST means: "ECONNREFUSED", "HTTP status 503"."""
    if number < FIRST:
        return errno.errorcode.get(number, "ETIMEDOUT")
    if HTTP_STATUS <= number < CERTIFICATE:
        return f"HTTP status {number - HTTP_STATUS}"
    if number >= CERTIFICATE:
        return _TEXTS.get(number, f"certificate is not valid (OpenSSL's code {number - CERTIFICATE})")
    return _TEXTS.get(number, f"unknown result {number}")
