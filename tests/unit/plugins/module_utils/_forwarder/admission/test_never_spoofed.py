# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Client addresses that are never used as a source, and the text of each refusal."""

from __future__ import annotations

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admission import never_spoofed

OWN = frozenset({"198.18.0.11", "2001:db8::11", "127.0.0.1"})

TEST_ADDRESSES = [
    ("203.0.113.7", None),
    ("10.0.0.1", None),
    ("2001:db8:1::10", None),
    ("198.18.0.99", None),
    ("127.0.0.1", "client address is loopback"),
    ("127.1.2.3", "client address is loopback"),
    ("::1", "client address is loopback"),
    ("0.0.0.0", "client address is unspecified"),
    ("0.1.2.3", "client address is in 0.0.0.0/8"),
    ("240.0.0.1", None),
    ("2002:c000:201::1", None),
    ("::", "client address is unspecified"),
    ("224.0.0.5", "client address is multicast"),
    ("ff02::1", "client address is multicast"),
    ("255.255.255.255", "client address is broadcast"),
    ("169.254.1.1", "client address is link-local"),
    ("fe80::1%eth0", "client address is link-local"),
    ("::ffff:203.0.113.7", "client address is v4-mapped"),
    ("198.18.0.11", "client address is the proxy's own"),
    ("2001:db8::11", "client address is the proxy's own"),
]


@pytest.mark.parametrize(("address", "reason"), TEST_ADDRESSES)
def test_an_address_that_cannot_be_a_source_is_refused(address, reason):
    assert never_spoofed.refusal(address, OWN) == (reason and ("never_spoofed", reason))
