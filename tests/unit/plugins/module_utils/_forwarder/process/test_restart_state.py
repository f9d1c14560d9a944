# Copyright (c) 2026, The trueip.l4proxy authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a supervisor leaves for a restart; tests/kernel/forwarder/test_restart.py has the workers."""

from __future__ import annotations

import os
import socket
import stat

import pytest
from ansible_collections.trueip.l4proxy.plugins.module_utils._forwarder.process import notify, restart_state

LISTENER = "tcp:0.0.0.0:80#0"


@pytest.fixture
def opened():
    """A function that returns the descriptor of a new "region", or a socket with this content; all are closed later."""
    numbers = []

    def new(content, number=None):
        if content == "region":
            memory = os.memfd_create(content)
            os.write(memory, content.encode())
        else:
            sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            with sender:
                sender.send(content.encode())
            memory = receiver.detach()
        if number is not None:
            os.dup2(memory, number)
            os.close(memory)
            memory = number
        numbers.append(memory)
        return memory

    yield new
    os.closerange(500, 600)


def content(number):
    if not stat.S_ISSOCK(os.fstat(number).st_mode):
        return os.pread(number, 100, 0).decode()
    with socket.socket(fileno=os.dup(number)) as sock:
        return sock.recv(100, socket.MSG_PEEK).decode()


def child(channel, pid=None, estate=None, generation=3):
    return {"pid": pid or os.getpid(), "generation": generation, "channel": channel, "estate": estate}


def state(*children):
    serving = {"description": {"generation": 3}}
    return {"serving": serving, "draining": {"2": {}}, "children": list(children), "adopted": [], "lock": 9}


def stored(left, first):
    """As systemd passes what ``left`` names: at descriptors from ``first`` on, in any order."""
    copies = {name: os.dup(number) for name, number in left.items()}
    for number in left.values():
        os.close(number)
    numbers = {name: os.dup2(copies[name], first + place) for place, name in enumerate(sorted(copies))}
    for number in copies.values():
        os.close(number)
    return numbers


def test_descriptors_get_their_numbers_again_even_those_that_others_have_now(opened):
    region, channel, estate, listener = (
        opened(name, 500 + place) for place, name in enumerate(["region", "c", "e", "L"])
    )
    left = restart_state.leave(state(child(channel, estate=estate)), [region])
    assert all(restart_state.is_name(name) for name in left)
    assert not restart_state.is_name(LISTENER)
    found = stored({**left, LISTENER: listener}, 500)
    taken = restart_state.take(found)
    assert [content(number) for number in (region, channel, estate)] == ["region", "c", "e"]
    assert list(found) == [LISTENER]
    assert content(found[LISTENER]) == "L"
    os.close(found[LISTENER])
    assert taken["listeners"] == found
    assert (taken["children"], taken["lock"], taken["attempt"]) == ([], None, 0)
    assert taken["adopted"][0]["born"] > 0
    assert not any(os.get_inheritable(number) for number in (region, channel, estate))


def test_children_that_have_ended_or_belong_to_no_generation_are_left_out(opened):
    """systemd closes a channel whose other end is closed."""
    region, *channels = (opened(name, 510 + place) for place, name in enumerate(["region", *"abcd"]))
    children = [child(one) for one in channels]
    children[1]["pid"] = 2**22  # no process has it
    children[2]["generation"] = 4
    left = restart_state.leave(state(*children), [region])
    assert len(left) == 3, "document and region, two channels"
    left = {name: number for name, number in left.items() if number != channels[3]}
    os.close(region)
    taken = restart_state.take(stored(left, 530))
    assert [one["channel"] for one in taken["adopted"]] == [channels[0]]


def test_only_the_newest_complete_state_is_taken(opened):
    """A version that does not know it, like 0.1.0, leaves an older one in the store."""
    old, new = opened("old", 540), opened("new", 541)
    one = restart_state.leave(state(child(old)), [])
    two = restart_state.leave(state(child(new)), [])
    found = stored({**one, **two}, 550)
    assert [content(child["channel"]) for child in restart_state.take(found)["adopted"]] == ["new"]
    assert found == {}


def test_without_document_and_shared_memory_nothing_is_taken(opened):
    left = restart_state.leave(state(child(opened("c", 562))), [opened("region", 560)])
    found = stored({**left, LISTENER: opened("L", 561)}, 570)
    os.close(next(found.pop(name) for name in list(found) if name.endswith(":0#0")))
    assert restart_state.take(found) is None
    assert list(found) == [LISTENER]


def test_the_store_returns_a_state_besides_listeners(opened):
    left = restart_state.leave(state(), [opened("region", 503)])
    found = stored(left, 3 + 577)
    names = ":".join(name.replace(":", "%3A").replace("#", "%23") for name in found)
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notify, "FIRST_STORED", 580)
        assert set(notify.stored(environ)) == set(left)
