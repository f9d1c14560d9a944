# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Netlink messages as bytes, and answers of the kernel. tests/kernel tests that the kernel accepts them."""

from __future__ import annotations

import errno
import socket
import struct

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._routing.netlink import messages


def test_attributes_are_padded_and_read_back_without_their_flags():
    pairs = [(1, b"abcd"), (2, b"x"), (3, b"")]
    packed = b"".join(messages.attribute(*pair) for pair in pairs)
    assert len(packed) == 8 + 8 + 4
    assert list(messages.attributes(packed)) == pairs
    assert list(messages.attributes(struct.pack("=HH", 4, 0x8004))) == [(4, b"")]


@pytest.mark.parametrize("data", [b"", b"\0\0", struct.pack("=HH", 3, 1), struct.pack("=HH", 0, 0)])
def test_an_invalid_attribute_ends_the_list(data):
    assert list(messages.attributes(data)) == []


def answer(code: int, flags: int = 0, extra: bytes = b"") -> bytes:
    body = struct.pack("=i", -code) + messages.HEADER.pack(16, 32, 0, 1, 0) + extra
    return messages.HEADER.pack(16 + len(body), messages.NLMSG_ERROR, flags, 1, 0) + body


@pytest.mark.parametrize(("extra", "flags", "words"), [
    (b"", 0, "Operation not permitted"),
    (messages.attribute(1, b"Rule is special\0"), 0x300, "Rule is special"),
    (messages.attribute(7, b"?"), 0x300, "Operation not permitted"),
])  # fmt: skip
def test_a_refusal_has_the_number_and_the_reason_of_the_kernel(extra, flags, words):
    messages.raise_error(answer(0))  # an acknowledgement raises nothing
    with pytest.raises(PermissionError, match=words) as caught:
        messages.raise_error(answer(errno.EPERM, flags, extra))
    assert caught.value.errno == errno.EPERM


def done(flags: int = 0) -> bytes:
    return messages.HEADER.pack(20, messages.NLMSG_DONE, flags, 1, 0) + b"\0\0\0\0"


def piece(*bodies: bytes, flags: int = 0) -> bytes:
    return b"".join(messages.HEADER.pack(16 + len(body), 32, flags, 1, 0) + body for body in bodies)


@pytest.fixture
def kernel(monkeypatch):
    """A Netlink, and the other end of its socket."""
    made = messages.Netlink()
    made.close()
    made._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    made._socket.settimeout(1)
    yield made, other
    made.close()
    other.close()


@pytest.mark.parametrize(("sent", "read"), [
    ([piece(b"aaaa", b"bbbb"), piece(b"cccc") + done()], [b"aaaa", b"bbbb", b"cccc"]),
    ([piece(b"old.", flags=messages.NLM_F_DUMP_INTR), done(), piece(b"new.") + done()], [b"new."]),
])  # fmt: skip
def test_a_list_may_arrive_in_pieces_and_is_read_again_if_it_changed_meanwhile(kernel, sent, read):
    made, other = kernel
    for data in sent:
        other.send(data)
    assert made.dump(34, b"") == read


def test_a_refused_list_raises(kernel):
    made, other = kernel
    other.send(answer(errno.EPERM))
    with pytest.raises(PermissionError):
        made.dump(34, b"")


def test_interfaces_are_found_by_name_and_by_index():
    assert messages.link_name(messages.link_index("lo")) == "lo"
    assert messages.link_name(0x7FFFFFFF) == "if2147483647"
    with pytest.raises(OSError, match="nope0") as caught:
        messages.link_index("nope0")
    assert caught.value.errno == errno.ENODEV
