# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of the source address, and the ports of a slice when the kernel does not choose them."""

from __future__ import annotations

import errno

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.admission import source_address
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.service import Backend, Listener, Service
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.config.settings import PortRange
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.loop.sockets import CapabilityError

from tests.unit.tables import rows

CLIENT = ("203.0.113.7", 4000)
TARGET = ("198.18.0.21", 8080)
SLICE = PortRange(40000, 40063)
EVERY = set(range(65536))


class Kernel:
    """Replaces connects: refuses the ports in ``taken``, and records what was asked for."""

    def __init__(self, monkeypatch):
        self.taken, self.asked, self.options = set(), [], []
        monkeypatch.setattr(source_address.sockets, "begin_connect", self.begin_connect)

    def begin_connect(self, _family, options, address, target):
        assert target == TARGET
        if address is None:
            return "own"
        self.asked.append(address[1])
        self.options.append({name: value for _level, name, value in options})
        if address[1] in self.taken:
            raise self.error
        return address

    error = OSError(errno.EADDRINUSE, "")


@pytest.fixture
def kernel(monkeypatch):
    return Kernel(monkeypatch)


def ladder(ports=None, **options):
    service = Service("web", (Listener("0.0.0.0", 80),), (Backend("b", 8080, ipv4="198.18.0.21"),), **options)
    counted = []
    return source_address.SourceAddress(service, ports or source_address.SourcePorts(), counted.append), counted


@pytest.mark.parametrize(("port", "fallback", "taken", "made", "step", "counters"), [
    ("any", "refuse", set(), (CLIENT[0], 0), "any", []),
    ("keep", "refuse", set(), CLIENT, "kept", []),
    ("keep", "refuse", {4000}, (CLIENT[0], 0), "any", ["port taken"]),
    ("keep", "own", EVERY, "own", "own", ["port taken", "no port left"]),
    ("any", "own", EVERY, "own", "own", ["no port left"]),
])  # fmt: skip
@pytest.mark.parametrize("number", [errno.EADDRINUSE, errno.EADDRNOTAVAIL])
def test_each_step_follows_when_the_one_before_is_not_possible(
    kernel, port, fallback, taken, made, step, counters, number
):
    kernel.taken, kernel.error = taken, OSError(number, "")
    one, counted = ladder(source_port=port, source_fallback=fallback)
    assert one.connect(CLIENT, TARGET) == (made, step)
    assert counted == counters


TEST_FAILURES = [
    ("without a fallback the last step fails", "refuse", EVERY, OSError(errno.EADDRINUSE, ""), ["port taken"]),
    ("any other error ends the steps", "own", {4000, 0}, OSError(errno.ENETUNREACH, ""), []),
    ("without CAP_NET_RAW every step fails", "own", {4000, 0}, CapabilityError(errno.EPERM, ""), None),
]


@pytest.mark.parametrize(("fallback", "taken", "error", "counters"), **rows(TEST_FAILURES))
def test_an_error_is_raised_when_no_step_is_left_or_may_follow(kernel, fallback, taken, error, counters):
    kernel.taken, kernel.error = taken, error
    one, counted = ladder(source_port="keep", source_fallback=fallback)
    with pytest.raises(type(error)) as caught:
        one.connect(CLIENT, TARGET)
    assert caught.value.errno == error.errno
    assert counters is None or counted == counters


def test_a_privileged_port_that_cannot_be_bound_is_not_kept(kernel):
    kernel.taken, kernel.error = {700}, CapabilityError(errno.EACCES, "")
    one, counted = ladder(source_port="keep")
    assert one.connect((CLIENT[0], 700), TARGET) == ((CLIENT[0], 0), "any")
    assert counted == ["port not permitted"]


def test_the_kernel_gets_the_slice_as_a_socket_option_and_if_it_finds_no_port_some_are_tried_by_number(kernel):
    one, _counted = ladder(source_address.SourcePorts(SLICE))
    one.connect(CLIENT, TARGET)
    (options,) = kernel.options
    assert options[source_address.sockets.IP_LOCAL_PORT_RANGE] == source_address.sockets.port_range(40000, 40063)
    kernel.taken = {0, 40001}
    one, counted = ladder(source_address.SourcePorts(SLICE))
    made = [one.connect(CLIENT, TARGET)[0][1] for _connection in range(63)]
    assert sorted(made) == [40000, *range(40002, 40064)]
    assert counted == []
    kernel.taken, kernel.asked = EVERY, []
    with pytest.raises(OSError, match="98"):
        one.connect(CLIENT, TARGET)
    assert len(kernel.asked) == 1 + source_address.TRIES_BY_NUMBER


def test_on_an_older_kernel_connections_get_one_port_after_the_other_and_skip_taken_ones(kernel):
    one, _counted = ladder(source_address.SourcePorts(SLICE, by_kernel=False))
    made = [one.connect(CLIENT, TARGET)[0][1] for _connection in range(64)]
    assert sorted(made) == list(range(40000, 40064))
    assert not any(source_address.sockets.IP_LOCAL_PORT_RANGE in options for options in kernel.options)
    kernel.taken = set(range(40000, 40063))
    for _connection in range(3):
        assert one.connect(CLIENT, TARGET) == ((CLIENT[0], 40063), "any")


def test_one_connection_tries_a_bounded_number_of_ports(kernel):
    kernel.taken = set(range(1024, 65536))
    one, _counted = ladder(source_address.SourcePorts(PortRange(1024, 65535), by_kernel=False))
    with pytest.raises(OSError):
        one.connect(CLIENT, TARGET)
    assert len(kernel.asked) == source_address.TRIES


@pytest.mark.parametrize(("slice_", "own"), [
    (None, 111), (PortRange(32768, 46883), 56), (PortRange(46884, 60999), 55), (SLICE, 0), (PortRange(40203, 40300), 1),
])  # fmt: skip
@pytest.mark.parametrize("by_kernel", [True, False])
def test_shared_sockets_prefer_ports_that_no_other_proxy_prefers(monkeypatch, slice_, own, by_kernel):
    monkeypatch.setattr(source_address.sockets, "local_ports", lambda: (32768, 60999))
    ports = source_address.SourcePorts(slice_, by_kernel, 11)
    tried = [
        port for _time in range(2000) for port in list(ports.candidates())[: min(own, source_address.TRIES_OF_OWN)]
    ]
    assert len(set(tried)) == own
    assert all(port % source_address.PROXY_IDS == 11 and port in ports for port in tried)
    assert (0 in ports.candidates()) == (by_kernel or not slice_)


@pytest.mark.parametrize("silent", [40000, 40063, 4000, 4001])
def test_another_port_is_of_the_slice_and_odd_if_the_silent_one_is_even(kernel, silent):
    one, _counted = ladder(source_address.SourcePorts(SLICE))
    kernel.taken, kernel.error = EVERY, OSError(errno.EADDRINUSE, "in use")
    with pytest.raises(OSError, match="in use"):
        one.connect_from_other_port(CLIENT[0], TARGET, silent)
    assert len(kernel.asked) == source_address.TRIES_BY_NUMBER
    assert all(SLICE.first <= port <= SLICE.last and (port + silent) % 2 for port in kernel.asked)
