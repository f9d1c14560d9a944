# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pool of pipes and its bound, and splice() with and without ctypes."""

from __future__ import annotations

import errno
import fcntl
import os
import socket

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp import splice
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.tcp.splice import PIPE_SIZE, PipePool


def open_descriptors():
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture
def pool():
    before = open_descriptors()
    pool = PipePool(20)
    yield pool
    pool.close()
    assert open_descriptors() - before == set(), "a pipe was left open"


def test_an_empty_pipe_is_used_again_and_one_that_holds_bytes_is_closed(pool):
    pipe = pool.take()
    pool.give_back(pipe)
    assert pool.take() is pipe
    os.write(pipe.write_end, b"one client's secret")
    pipe.held = 19
    pool.give_back(pipe)
    other = pool.take()
    assert other is not pipe
    with pytest.raises(BlockingIOError):
        os.read(other.read_end, 1)
    pool.give_back(other)


def test_half_of_the_bound_is_for_wide_pipes_and_the_rest_for_small_ones(pool):
    lent = [pool.take() for _pipe in range(15)]
    assert [pipe.size // PIPE_SIZE for pipe in lent[:-1]] == [4, 4] + [1] * 12
    assert lent[-1] is None
    assert (pool.lent, pool.refused) == (14, 1)
    for pipe in lent[:-1]:
        assert fcntl.fcntl(pipe.write_end, splice.F_SETPIPE_SZ + 1) == pipe.size, "F_GETPIPE_SZ"
        pool.give_back(pipe)
    assert pool.lent == 0
    again = [pool.take() for _pipe in range(14)]
    assert again[0].size == again[1].size == 4 * PIPE_SIZE, "the wide ones first"
    assert pool.take() is None, "the spare ones are of the bound, too"
    for pipe in again:
        pool.give_back(pipe)


def test_the_pool_keeps_a_bounded_number_of_spare_pipes():
    pool = PipePool(100)
    lent = [pool.take() for _pipe in range(30)]
    before = len(open_descriptors())
    for pipe in lent:
        pool.give_back(pipe)
    assert before - len(open_descriptors()) == 2 * (30 - splice.SPARE)
    more = [pool.take() for _pipe in range(62)]
    assert all(more), "what was closed counts no more"
    for pipe in more:
        pool.give_back(pipe)
    pool.close()


def test_without_splice_or_where_the_kernel_refuses_a_pipe_there_is_none_and_nothing_stays_open(pool, monkeypatch):
    def refuse(*_arguments):
        raise PermissionError(errno.EPERM, "")

    monkeypatch.setattr(splice.fcntl, "fcntl", refuse)
    before = open_descriptors()
    assert pool.take() is None
    assert open_descriptors() == before
    monkeypatch.setattr(splice, "splice", None)
    assert PipePool(20).take() is None


@pytest.mark.parametrize(("pages", "workers", "descriptors", "pipes"), [
    (16384, 1, 20000, 192),  # three quarters of 64 MiB
    (16384, 2, 20000, 96),
    (16384, 4, 1024, 48),
    (16384, 1, 1024, 64),  # an eighth of the descriptors
    (0, 1, 20000, 1250),  # no limit by pages
    (100, 1, 20000, 1),
    (0, 1, 8, 0),
])  # fmt: skip
@pytest.mark.skipif(os.sysconf("SC_PAGE_SIZE") != 4096, reason="the figures are for pages of 4 KiB")
def test_the_bound_follows_from_the_users_pages_and_the_descriptors(monkeypatch, pages, workers, descriptors, pipes):
    monkeypatch.setattr(splice, "soft_limit", lambda: pages)
    assert splice.most_pipes(workers, descriptors) == pipes


def test_a_hidden_soft_limit_counts_as_the_kernels_default(monkeypatch, tmp_path):
    assert splice.soft_limit() >= 0
    monkeypatch.setattr(splice, "SOFT_LIMIT", str(tmp_path / "hidden"))
    assert splice.soft_limit() == 16384


@pytest.mark.parametrize("function", [splice.splice, splice._splice_by_ctypes()], ids=["found", "ctypes"])
def test_splice_moves_bytes_and_raises_the_errors_of_the_kernel(function):
    source, sink = socket.socketpair(), socket.socketpair()
    pipe = splice.Pipe()
    for sock in (*source, *sink):
        sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        function(source[1].fileno(), pipe.write_end, PIPE_SIZE)
    source[0].sendall(b"x" * 1000)
    assert function(source[1].fileno(), pipe.write_end, PIPE_SIZE) == 1000
    assert function(pipe.read_end, sink[0].fileno(), 400) == 400
    assert function(pipe.read_end, sink[0].fileno(), PIPE_SIZE) == 600
    assert sink[1].recv(2000) == b"x" * 1000
    source[0].close()
    assert function(source[1].fileno(), pipe.write_end, PIPE_SIZE) == 0
    sink[1].close()
    os.write(pipe.write_end, b"x")
    with pytest.raises(BrokenPipeError):
        function(pipe.read_end, sink[0].fileno(), 1)
    pipe.close()
    for sock in (source[1], sink[0]):
        sock.close()
